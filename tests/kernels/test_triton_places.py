"""The Triton kernels, interpreted, where tokens do not simply follow one another: trees, slots, sinks, packed pages."""

from dataclasses import replace

import pytest
import torch

from kernels.cases import starts
from kernels.interpreted import SMALL, TritonAttention
from kernels.rounding import tolerance
from kernels.test_packed import RULES as PACKED_RULES
from kernels.test_packed import sinks_of
from kernels.test_places import without_gaps
from kernels.views import Plan, pack, random_tree, with_trees
from pagoda.errors import ConfigError
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.plain import BF16, FP32
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import FP8_E4M3, INT8
from pagoda.kernels.base import CHAIN, AttentionRule, LayerPages
from pagoda.kernels.reference import ReferenceKernels
from pagoda.layouts.spec import Reach

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SIZES = {"kv_heads": 2, "group": 3, "key_width": 16, "value_width": 16, "page_tokens": 16}
RULES = {
    "full": AttentionRule(0.125),
    "window": AttentionRule(0.125, Reach.SLIDING, 30),
    "narrow": AttentionRule(0.125, Reach.SLIDING, 3),
    "sinks": AttentionRule(0.125, Reach.SLIDING, 40, sink_tokens=5),
    "chunks": AttentionRule(0.125, Reach.CHUNKED, 7, soft_cap=5.0),
    "slopes": AttentionRule(0.125, slopes=(0.0, 0.5, 0.25)),
}
ONE_HEAD = {**SIZES, "kv_heads": 1}
# Rows of a tree, of few and of many, beside a prompt, a step of decoding, and one that computes nothing.
TREES = ((70, 20), (3, 9), (40, 1), (0, 21), (9, 0))


def check(case, rule, view=None, sinks=None, biases=None):
    view = view or case.view
    expected = ReferenceKernels().attend(case.query, case.layer, view, rule, sinks, biases)
    actual = TritonAttention(SMALL).attend(case.query, case.layer, view, rule, sinks, biases)
    values = case.key if case.value is None else case.value
    limit = tolerance(case.shape, rule) * float(values.abs().max())
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=limit)


@pytest.mark.parametrize("rule", RULES)
def test_trees(rule, shape, make_case):
    case = make_case(shape(format=FP32, sequences=TREES, **(SIZES if rule == "full" else ONE_HEAD)))
    trees = [random_tree(20, 1), random_tree(9, 2), None, None, None]
    biases = torch.randn(case.shape.heads, 33) if rule == "full" else None
    check(case, RULES[rule], with_trees(case, trees), biases=biases)


@pytest.mark.parametrize(
    ("format", "has_constants"), [(BF16, False), (INT8, True), (INT4, False)], ids=lambda one: getattr(one, "name", one)
)
def test_trees_over_other_formats(format, has_constants, shape, make_case):
    case = make_case(
        shape(format=format, dtype=format.model_dtype(), sequences=TREES[:2], has_constants=has_constants, **SIZES)
    )
    check(case, RULES["full"], with_trees(case, [random_tree(20, 1), random_tree(9, 2)]))


def test_a_tree_of_as_many_rows_as_there_may_be(shape, make_case):
    case = make_case(shape(format=FP32, sequences=((5, 64),), **ONE_HEAD))
    check(case, RULES["full"], with_trees(case, [random_tree(64, 1)]))


def test_sequences_without_a_tree_keep_their_bits_beside_one(shape, make_case):
    case = make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((90, 1), (0, 40), (50, 8)), **ONE_HEAD))
    kernels, rule = TritonAttention(SMALL), RULES["full"]
    beside = kernels.attend(case.query, case.layer, with_trees(case, [None, None, random_tree(8, 0)]), rule)
    alone = kernels.attend(case.query, case.layer, case.view, rule)
    assert torch.equal(beside[:41], alone[:41])
    assert not torch.equal(beside[41:], alone[41:])


@pytest.mark.parametrize("format", [FP32, INT4_ROTATED], ids=lambda one: one.name)
def test_rows_are_stored_in_slots_of_their_own(format, shape, make_case):
    """Over tokens that were there; the rows then see each other in order, and whatever else is stored."""
    case = make_case(shape(format=format, dtype=format.model_dtype(), sequences=((0, 100), (0, 40), (0, 2)), **SIZES))
    slots = torch.cat([torch.tensor([99, 3, 64, 0]), torch.tensor([17]), torch.tensor([0, 1])]).int()
    view = replace(case.view, query_starts=starts([4, 1, 2]), slots=slots)
    rows = torch.tensor([5, 6, 7, 8, 60, 20, 21])
    expected, actual = (LayerPages(case.layer.pages.clone(), case.layer.geometry, 1) for _ in range(2))
    ReferenceKernels().store(case.key[rows], case.value[rows], expected, view)
    TritonAttention(SMALL).store(case.key[rows], case.value[rows], actual, view)
    assert torch.equal(actual.pages, expected.pages)
    assert not torch.equal(actual.pages, case.layer.pages)
    placed = replace(case, layer=actual, query=case.query[rows])
    check(placed, RULES["full"], view)
    check(placed, RULES["window"], replace(view, positions=slots + 7))
    check(placed, RULES["full"], replace(view, ancestors=torch.tensor([0, 1, 1, 0b110, CHAIN, CHAIN, 0])))


@pytest.mark.parametrize(
    ("values", "reason"),
    [([0, 50], "page table does not have"), ([-1, 0], "page table does not have"), ([7, 7], "have one slot")],
)
def test_slots_that_cannot_be_are_refused(values, reason, shape, make_case):
    case = make_case(shape(format=FP32, sequences=((48, 2),), **SIZES))
    with pytest.raises(ConfigError, match=reason):
        TritonAttention(SMALL).attend(
            case.query, case.layer, replace(case.view, slots=torch.tensor(values).int()), RULES["full"]
        )


SINK_RULES = [
    AttentionRule(0.125, reach, span, sink_tokens=sinks)
    for reach, span, sinks in [
        (Reach.SLIDING, 20, 1),
        (Reach.SLIDING, 20, 33),
        (Reach.SLIDING, 70, 40),
        (Reach.CHUNKED, 24, 5),
        (Reach.CHUNKED, 24, 100),
        (Reach.SLIDING, 20, 150),
    ]
]


@pytest.mark.parametrize("rule", SINK_RULES, ids=lambda rule: f"{rule.reach} {rule.span} {rule.sink_tokens}")
@pytest.mark.parametrize("format", [FP32, FP8_E4M3], ids=lambda one: one.name)
def test_the_first_tokens_stay_in_reach(format, rule, shape, make_case):
    case = make_case(
        shape(
            format=format,
            dtype=format.model_dtype(),
            sequences=((200, 1), (90, 18), (0, 40), (130, 3), (10, 2), (310, 1)),
            **ONE_HEAD,
        )
    )
    check(case, rule, without_gaps(case, rule), sinks=torch.linspace(-1, 2, 3) if rule is SINK_RULES[1] else None)


def test_rows_with_sinks_have_the_same_bits_in_every_batch(shape, make_case):
    case = make_case(shape(format=FP32, sequences=((0, 90),), **{**ONE_HEAD, "group": 2}))
    rule, kernels = SINK_RULES[1], TritonAttention(replace(SMALL, many_split_tokens=32))
    expected = kernels.attend(case.query, case.layer, case.view, rule)
    for first, last in [(0, 40), (40, 89), (89, 90)]:
        length = torch.tensor([last]).int()
        view = replace(case.view, query_starts=starts([last - first]), context_lengths=length)
        assert torch.equal(kernels.attend(case.query[first:last], case.layer, view, rule), expected[first:last])


PLANS = (Plan(100, 2, 1, 1), Plan(90, 0, 20, 3), Plan(150, 4, 20, 18), Plan(60, 2, 20, 0))


@pytest.mark.parametrize(
    ("format", "has_latents"),
    [(FP32, False), (BF16, False), (INT8, False), (INT4, False), (FP32, True), (INT4_ROTATED, True)],
    ids=lambda one: getattr(one, "name", one),
)
def test_each_head_attends_to_the_tokens_that_it_kept_and_to_all_behind(format, has_latents, shape):
    sizes = {**SIZES, "group": 2}
    if has_latents:
        sizes = {**sizes, "kv_heads": 1, "key_width": 32, "has_latents": True}
    case = pack(shape(format=format, dtype=format.model_dtype(), sequences=(), **sizes), PLANS).case
    rule, has_sinks = PACKED_RULES["plain" if has_latents else "capped, with sinks"]
    check(case, rule, sinks=sinks_of(case, has_sinks))


def test_packed_pages_and_rows_in_other_slots_are_refused(shape):
    case = pack(shape(format=FP32, sequences=(), **SIZES), PLANS[:1]).case
    view = replace(case.view, slots=torch.tensor([32]).int())
    with pytest.raises(ConfigError, match="follow one another"):
        TritonAttention(SMALL).attend(case.query, case.layer, view, RULES["full"])


@pytest.mark.parametrize("has_latents", [False, True])
def test_keys_have_scales_where_they_have_nothing_else_in_common(has_latents, shape, make_case):
    sizes = {**SIZES, "kv_heads": 1, "has_latents": True} if has_latents else SIZES
    case = make_case(shape(format=INT8, sequences=((40, 1), (0, 20)), **sizes))
    heads, width = case.shape.kv_heads, case.shape.key_width
    scales, turns = 2.0 ** torch.randint(-2, 3, (heads, width)), PageTurns.of(torch.zeros(0), 16, 4)
    constants = KeyConstants(scales, torch.zeros(heads, 0, 3).int(), torch.zeros(heads, 0, 2), turns)
    layer = replace(case.blank(), constants=constants)
    actual = replace(layer, pages=layer.pages.clone())
    ReferenceKernels().store(case.key, case.value, layer, case.whole)
    TritonAttention(SMALL).store(case.key, case.value, actual, case.whole)
    assert torch.equal(actual.pages, layer.pages)
    check(replace(case, layer=layer), RULES["full"])
