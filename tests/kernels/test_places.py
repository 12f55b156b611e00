"""Rows whose tokens do not simply follow one another: trees, other slots, positions apart, sinks beside a window."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cases import starts
from kernels.rounding import FORMATS, tolerance
from kernels.views import chain_of, random_tree, with_trees
from pagoda.errors import ConfigError
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.plain import BF16, FP32
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import (
    CHAIN,
    MOST_TREE_ROWS,
    AttentionRule,
    AttentionUse,
    GroupView,
    LayerPages,
    compaction_obstacle,
)
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_arguments import WITH_CONSTANTS
from pagoda.kernels.native_calls import instruction_sets
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach

every_isa = pytest.mark.parametrize("isa", instruction_sets())
every_format = pytest.mark.parametrize("format", FORMATS, ids=[format.name for format in FORMATS])


@pytest.fixture(params=["reference", *instruction_sets()])
def kernels(request):
    return ReferenceKernels() if request.param == "reference" else NativeKernels(request.param)


RULES = {
    "full": AttentionRule(0.125),
    "capped": AttentionRule(0.125, soft_cap=20.0),
    "window": AttentionRule(0.125, Reach.SLIDING, 300),
    "narrow": AttentionRule(0.125, Reach.SLIDING, 3),
    "sinks": AttentionRule(0.125, Reach.SLIDING, 40, sink_tokens=5),
    "chunks": AttentionRule(0.125, Reach.CHUNKED, 7),
    "slopes": AttentionRule(0.125, slopes=tuple(2.0**-head for head in range(8))),
    "slopes and cap": AttentionRule(0.125, soft_cap=20.0, slopes=tuple(2.0**-head for head in range(8))),
}


def check(isa, case, view, rule, biases=None):
    expected = ReferenceKernels().attend(case.query, case.layer, view, rule, biases=biases)
    actual = NativeKernels(isa).attend(case.query, case.layer, view, rule, biases=biases)
    limit = tolerance(case.shape, rule) * float(case.value.abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=limit)


@every_isa
@every_format
def test_trees_beside_decode_and_prefill(isa, format, shape, make_case):
    sequences = ((70, 64), (1100, 9), (40, 1), (0, 80), (0, 20), (333, 5))
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=sequences))
    trees = [random_tree(64, 1), random_tree(9, 2), None, None, random_tree(20, 3), None]
    for rule in RULES.values():
        check(isa, case, with_trees(case, trees), rule)


@every_isa
@settings(max_examples=12)
@given(data=st.data())
def test_any_trees(isa, data, shape, make_case):
    sequences = data.draw(
        st.lists(st.tuples(st.sampled_from([0, 3, 90, 1050]), st.sampled_from([0, 1, 7, 64])), min_size=1, max_size=4)
    )
    sequences = tuple(sequences if any(new for _, new in sequences) else [*sequences, (5, 2)])
    format = data.draw(st.sampled_from(FORMATS))
    has_constants = data.draw(st.booleans()) and format in WITH_CONSTANTS
    case = make_case(
        shape(
            format=format,
            dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
            sequences=sequences,
            group=data.draw(st.sampled_from([1, 3])),
            page_tokens=data.draw(st.sampled_from([16, 48])),
            has_constants=has_constants,
        )
    )
    trees = [
        random_tree(new, data.draw(st.integers(0, 99))) if data.draw(st.booleans()) else None for _, new in sequences
    ]
    rule = replace(RULES[data.draw(st.sampled_from(list(RULES)))], slopes=None)
    biases = torch.randn(case.shape.heads, 33) if data.draw(st.booleans()) else None
    check(isa, case, with_trees(case, trees), rule, biases)


@pytest.mark.parametrize("format", [FP32, BF16, INT8], ids=lambda one: one.name)
def test_a_row_of_a_tree_is_the_last_of_a_sequence_of_its_own(kernels, format, shape, make_case):
    past, parents = 90, random_tree(16, 5)
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=((past, 16),)))
    together = {
        name: kernels.attend(case.query, case.layer, with_trees(case, [parents]), rule) for name, rule in RULES.items()
    }
    for row in range(16):
        tokens = [*range(past), *(past + each for each in chain_of(parents, row))]
        length = torch.tensor([len(tokens)]).int()
        all_new = replace(case.whole, query_starts=starts([len(tokens)]), context_lengths=length)
        branch = case.blank()
        kernels.store(case.key[tokens], case.value[tokens], branch, all_new)
        last = replace(all_new, query_starts=starts([1]))
        for name, rule in RULES.items():
            alone = kernels.attend(case.query[row : row + 1], branch, last, rule)
            limit = 2 * tolerance(case.shape, rule) * float(case.value.abs().max())
            torch.testing.assert_close(together[name][row].float(), alone[0].float(), rtol=0, atol=limit)


@every_isa
def test_sequences_without_a_tree_keep_their_bits_beside_one(isa, shape, make_case):
    case = make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((1100, 1), (0, 200), (50, 8))))
    kernels, rule = NativeKernels(isa), RULES["full"]
    beside = kernels.attend(case.query, case.layer, with_trees(case, [None, None, random_tree(8, 0)]), rule)
    alone = kernels.attend(case.query, case.layer, case.view, rule)
    assert torch.equal(beside[:201], alone[:201])
    assert not torch.equal(beside[201:], alone[201:])
    chains = kernels.attend(case.query, case.layer, with_trees(case, [None] * 3), rule)
    assert torch.equal(chains, alone)


@every_isa
@every_format
def test_rows_are_stored_in_slots_of_their_own(isa, format, shape, make_case):
    """Over tokens that were there; the rows then see each other in order, and whatever else is stored."""
    sequences = ((0, 100), (0, 40), (0, 2))
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=sequences))
    slots = torch.cat([torch.tensor([99, 3, 64, 0]), torch.tensor([17]), torch.tensor([0, 1])]).int()
    view = replace(case.view, query_starts=starts([4, 1, 2]), slots=slots)
    rows = torch.tensor([5, 6, 7, 8, 60, 20, 21])
    expected, actual = (LayerPages(case.layer.pages.clone(), case.layer.geometry, 1) for _ in range(2))
    ReferenceKernels().store(case.key[rows], case.value[rows], expected, view)
    NativeKernels(isa).store(case.key[rows], case.value[rows], actual, view)
    assert torch.equal(actual.pages, expected.pages)
    assert not torch.equal(actual.pages, case.layer.pages)
    placed = replace(case, layer=actual, query=case.query[rows])
    check(isa, placed, view, RULES["full"])
    check(isa, placed, replace(view, positions=slots + 1000, is_compacted=True), RULES["capped"])
    check(isa, placed, replace(view, ancestors=torch.tensor([0, 1, 1, 0b110, CHAIN, CHAIN, 0])), RULES["full"])


def test_a_row_sees_what_was_stored_and_not_what_comes_after_it(kernels, shape, make_case):
    """Each row puts all its weight on one token, if it sees it."""
    case = make_case(shape(format=FP32, sequences=((0, 50),), group=1))
    slots = torch.tensor([20, 10, 49]).int()
    view = replace(case.view, query_starts=starts([3]), slots=slots)
    layer = LayerPages(case.layer.pages.clone(), case.layer.geometry, 1)
    key, value = torch.randn(3, 2, 64), torch.randn(3, 2, 64)
    kernels.store(key, value, layer, view)
    query = torch.stack([key[2] + case.key[30], key[0], key[1]]) * 8
    seen = kernels.attend(query, layer, view, AttentionRule(1.0))
    for row, expected in enumerate([case.value[30], value[0], value[1]]):
        torch.testing.assert_close(seen[row], expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("field", "values", "reason"),
    [
        ("slots", [0, 50], "slot that its page table does not have"),
        ("slots", [-1, 0], "slot that its page table does not have"),
        ("slots", [7, 7], "have one slot"),
    ],
)
def test_slots_that_cannot_be_are_refused(field, values, reason, shape, make_case):
    kernels = NativeKernels()
    case = make_case(shape(format=FP32, sequences=((48, 2),)))
    view = replace(case.view, **{field: torch.tensor(values).int()})
    with pytest.raises(ValueError, match=reason):
        kernels.attend(case.query, case.layer, view, RULES["full"])
    with pytest.raises(ValueError, match=reason):
        kernels.store(case.key[:2], case.value[:2], case.blank(), view)


@every_isa
def test_what_has_no_distance_is_refused(isa, shape, make_case):
    case, kernels = make_case(shape(format=FP32, sequences=((48, 2),))), NativeKernels(isa)
    elsewhere = replace(case.view, slots=torch.tensor([3, 4]).int())
    with pytest.raises(ValueError, match="other slots than the last"):
        kernels.attend(case.query, case.layer, elsewhere, RULES["window"])
    before = replace(case.view, positions=torch.tensor([47, 48]).int())
    with pytest.raises(ValueError, match="before what is stored"):
        kernels.attend(case.query, case.layer, before, RULES["slopes"])


def test_a_tree_has_so_many_rows_at_most(shape, make_case):
    rows = MOST_TREE_ROWS + 1
    case = make_case(shape(format=FP32, sequences=((5, rows),)))
    view = replace(case.view, ancestors=torch.full((rows,), CHAIN).index_fill(0, torch.tensor([3]), 1))
    with pytest.raises(ValueError, match="tree of more new tokens than 64"):
        NativeKernels().attend(case.query, case.layer, view, RULES["full"])


@pytest.mark.parametrize("field", ["positions", "slots", "ancestors"])
@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(3).long(), torch.zeros(3).int()], ids=str)
def test_fields_of_rows_have_a_number_for_each(field, value, shape, make_case):
    case = make_case(shape(format=FP32, sequences=((5, 2),)))
    with pytest.raises(ConfigError, match=f"{field} is"):
        NativeKernels().attend(case.query, case.layer, replace(case.view, **{field: value}), RULES["full"])


def based(num_pairs):
    """Constants of two heads of 64 channels with so many bases."""
    return KeyConstants(
        torch.ones(2, 64),
        torch.zeros(2, num_pairs, 3).int(),
        torch.zeros(2, num_pairs, 2),
        PageTurns.of(torch.zeros(0), 32, 4),
    )


@pytest.mark.parametrize(
    ("rule", "has_biases", "num_pairs", "reason"),
    [
        (RULES["window"], False, None, "windows and chunks"),
        (RULES["chunks"], False, None, "windows and chunks"),
        (RULES["slopes"], False, None, "scores depend"),
        (RULES["full"], True, None, "scores depend"),
        (RULES["full"], False, 1, "keys are kept without"),
        (RULES["full"], False, 0, None),
        (RULES["capped"], False, None, None),
    ],
)
def test_compacted_tables_are_refused_where_positions_matter(  # noqa: PLR0913, PLR0917
    kernels, rule, has_biases, num_pairs, reason, shape, make_case
):
    case = make_case(shape(format=INT8, dtype=torch.bfloat16, sequences=((60, 2),)))
    layer = case.layer if num_pairs is None else replace(case.layer, constants=based(num_pairs))
    obstacle = compaction_obstacle(layer, AttentionUse(rule, has_biases=has_biases))
    biases = torch.zeros(case.shape.heads, 4) if has_biases else None
    view = replace(case.view, positions=torch.tensor([500, 501]).int(), is_compacted=True)
    if reason is None:
        assert obstacle is None
        plain = kernels.attend(case.query, layer, case.view, rule)
        assert torch.equal(kernels.attend(case.query, layer, view, rule), plain)
        return
    assert obstacle.startswith(reason)
    with pytest.raises(ValueError, match="compacted"):
        kernels.attend(case.query, layer, view, rule, biases=biases)


SINK_RULES = [
    AttentionRule(0.125, reach, span, sink_tokens=sinks)
    for (reach, span), sinks in itertools.product(
        [(Reach.SLIDING, 20), (Reach.SLIDING, 700), (Reach.CHUNKED, 64)], [1, 4, 33, 300, 1100]
    )
]


def without_gaps(case, rule):
    """`case.view` without the pages between sinks and what the first new row reaches."""
    tables, page_tokens = case.view.page_indices.clone(), case.shape.page_tokens
    for first, (past, _) in zip(case.view.page_starts.tolist(), case.shape.sequences, strict=False):
        near = past // rule.span * rule.span if rule.reach is Reach.CHUNKED else past - rule.span + 1
        begin, end = -(-rule.sink_tokens // page_tokens), max(near, 0) // page_tokens
        tables[first + begin : first + max(begin, end)] = -1
    return replace(case.view, page_indices=tables)


@every_isa
@every_format
def test_the_first_tokens_stay_in_reach(isa, format, shape, make_case):
    sequences = ((2500, 1), (900, 30), (0, 60), (1300, 7), (10, 2), (3100, 1))
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=sequences, group=3))
    # Every rule meets every third format; formats differ in how a token is read, and not in which are.
    for rule in SINK_RULES[FORMATS.index(format) % 3 :: 3]:
        check(isa, case, without_gaps(case, rule), rule)


@every_isa
@pytest.mark.parametrize("format", [FP32, BF16, INT8], ids=lambda one: one.name)
@pytest.mark.parametrize("rule", SINK_RULES[:10:3], ids=lambda rule: f"{rule.reach} {rule.span} {rule.sink_tokens}")
@pytest.mark.usefixtures("two_threads")
def test_rows_with_sinks_have_the_same_bits_in_every_batch(isa, format, rule, shape, make_case):
    whole = make_case(shape(format=format, dtype=format.model_dtype(), sequences=((0, 2300),), group=2))
    kernels = NativeKernels(isa)
    expected = kernels.attend(whole.query, whole.layer, whole.view, rule)
    for first, last in itertools.pairwise([0, 1, 700, 2299, 2300]):
        length = torch.tensor([last]).int()
        view = replace(whole.view, query_starts=starts([last - first]), context_lengths=length)
        assert torch.equal(kernels.attend(whole.query[first:last], whole.layer, view, rule), expected[first:last])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(kernels.attend(whole.query, whole.layer, whole.view, rule), expected)
    finally:
        torch.set_num_threads(num_threads)


def test_sinks_get_the_weight_that_is_theirs(kernels, shape, make_case):
    """The last row's key is that of the first token, far outside of its window."""
    case = make_case(shape(format=FP32, sequences=((600, 1),), group=1))
    query = case.key[:1] * 8
    near = kernels.attend(query, case.layer, case.view, AttentionRule(1.0, Reach.SLIDING, 8))
    assert not torch.allclose(near, case.value[:1], atol=1e-2)
    seen = kernels.attend(query, case.layer, case.view, AttentionRule(1.0, Reach.SLIDING, 8, sink_tokens=1))
    torch.testing.assert_close(seen, case.value[:1], rtol=0, atol=1e-2)


def test_a_view_is_plain_unless_it_says_otherwise():
    nothing = torch.zeros(1).int()
    view = GroupView(nothing, nothing, nothing, nothing)
    assert view.positions is view.slots is view.ancestors is None
    assert not view.is_compacted
