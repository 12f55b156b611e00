"""The Triton kernels, interpreted, where rows read some of their pages: the same pages as the reference reads."""

from dataclasses import replace

import pytest
import torch

from kernels.cases import Shape, starts
from kernels.interpreted import SMALL, TritonAttention
from kernels.rounding import tolerance
from kernels.test_reading import ONE, RULE, check_summaries_are_made_once, check_summaries_reach
from kernels.views import reading, rows_of
from pagoda.errors import ConfigError
from pagoda.formats.constants import constants_on
from pagoda.formats.plain import BF16, FP16, FP32
from pagoda.formats.rotated import INT4
from pagoda.formats.scaled import FP8_E4M3, INT8
from pagoda.kernels.base import AttentionRule, LayerSummaries
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.triton import attention, choosing
from pagoda.kernels.triton.plan import Room, tables_of
from pagoda.models.attention import _padded

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BUDGET = 4
# As `READS_ALL` says, those behind the fifth read all. One has more rows than are bound at a time.
SEQUENCES = ((201, 1), (40, 1), (150, 18), (60, 7), (180, 1), (60, 3), (31, 0))
SIZES = {"sequences": SEQUENCES, "kv_heads": 2, "group": 3, "key_width": 16, "value_width": 16, "page_tokens": 16}
SHAPES = {
    "fp32": Shape(format=FP32, **SIZES),
    "fp16, one head to a group": Shape(
        format=FP16, dtype=torch.float16, **{**SIZES, "group": 1, "sequences": SEQUENCES[:2]}
    ),
    "bf16, twenty heads to a group": Shape(
        format=BF16,
        dtype=torch.bfloat16,
        **{**SIZES, "kv_heads": 1, "group": 20, "key_width": 40, "sequences": ((201, 1), (150, 3))},
    ),
    "int8 with constants, pages of 48": Shape(
        format=INT8,
        dtype=torch.bfloat16,
        has_constants=True,
        **{**SIZES, "page_tokens": 48, "sequences": ((401, 1), (90, 1), (300, 2))},
    ),
    "fp8": Shape(format=FP8_E4M3, dtype=torch.bfloat16, **{**SIZES, "sequences": SEQUENCES[:2]}),
    "int4 with constants": Shape(format=INT4, has_constants=True, **{**SIZES, "sequences": SEQUENCES[:2]}),
}
PLAIN = SHAPES["fp32"]
SHORT = replace(PLAIN, sequences=((201, 1), (150, 3)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_read_what_the_reference_reads(shape):
    case, rule = reading(shape, BUDGET), replace(RULE, soft_cap=5.0 if shape is PLAIN else None)
    sinks = torch.linspace(-1, 2, shape.heads) if shape is PLAIN else None
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, rule, sinks).float()
    kernels = TritonAttention(SMALL)
    first = kernels.attend(case.query, case.layer, case.view, rule, sinks)
    assert (first.float() - expected).abs().max() <= tolerance(shape, rule) * expected.abs().max()
    if shape is not PLAIN:
        again = kernels.attend(case.query, case.layer, case.view, rule, sinks)
        assert torch.equal(first, again), "summaries that are there and new ones are the same"


def test_of_equal_bounds_the_earlier_pages_are_read():
    case = reading(replace(PLAIN, sequences=ONE), BUDGET)
    query = torch.zeros_like(case.query)
    actual = TritonAttention(SMALL).attend(query, case.layer, case.view, RULE)
    assert (actual - ReferenceKernels().attend(query, case.layer, case.view, RULE)).abs().max() < 1e-6


def test_a_row_has_the_same_bits_alone_and_among_others():
    case, kernels = reading(SHORT, BUDGET), TritonAttention(SMALL)
    together = kernels.attend(case.query, case.layer, case.view, RULE)
    for row, sequence, num_tokens, pages in rows_of(case):
        view = replace(
            case.view,
            page_indices=pages.int(),
            page_starts=starts([len(pages)]),
            query_starts=starts([1]),
            context_lengths=torch.tensor([num_tokens]).int(),
            readings=case.view.readings[sequence : sequence + 1],
        )
        assert torch.equal(kernels.attend(case.query[row : row + 1], case.layer, view, RULE)[0], together[row])


@pytest.mark.parametrize(("budget", "first_layer"), [(20, 0), (BUDGET, 2)], ids=["budget", "layer"])
def test_rows_that_read_all_have_the_bits_of_those_that_were_not_asked(budget, first_layer):
    """Where pages are no more than the budget, or the layer comes before those that choose."""
    case, kernels = reading(SHORT, budget, first_layer), TritonAttention(SMALL)
    plain = kernels.attend(case.query, case.layer, replace(case.view, readings=None), RULE)
    assert torch.equal(kernels.attend(case.query, case.layer, case.view, RULE), plain)
    assert not case.layer.summaries.is_made.any(), "nothing was looked at"


def test_only_full_pages_between_the_ends_are_summarised_and_once():
    case = reading(replace(PLAIN, sequences=((190, 1), (125, 5))), BUDGET)
    check_summaries_are_made_once(TritonAttention(SMALL), case)


def test_what_is_stored_into_a_page_is_summarised_anew():
    case, kernels = reading(replace(PLAIN, sequences=((0, 201),)), BUDGET), TritonAttention(SMALL)
    last = replace(case.view, query_starts=starts([1]))
    kernels.attend(case.query[:1], case.layer, last, RULE)
    assert case.layer.summaries.is_made.any()
    kernels.store(case.key.flip(0), case.value.flip(0), case.layer, replace(case.whole, readings=None))
    assert not case.layer.summaries.is_made.any()
    expected = ReferenceKernels().attend(case.query[:1], case.layer, last, RULE)
    assert (kernels.attend(case.query[:1], case.layer, last, RULE) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [SHAPES["fp16, one head to a group"], SHAPES["fp8"], SHAPES["int4 with constants"]])
def test_summaries_reach_as_far_as_the_stored_keys_and_hardly_further(shape):
    case = reading(replace(shape, sequences=((200, 1),)), 3)
    TritonAttention(SMALL).attend(case.query, case.layer, case.view, RULE)
    check_summaries_reach(case)


def test_sequences_that_read_all_of_packed_pages_go_beside_those_that_choose():
    case = reading(SHORT, BUDGET)
    cells = torch.zeros(2, 3 * PLAIN.kv_heads + 1).int()
    beside = replace(case.view, cell_starts=cells)
    kernels = TritonAttention(SMALL)
    expected = kernels.attend(case.query, case.layer, case.view, RULE)
    assert torch.equal(kernels.attend(case.query, case.layer, beside, RULE), expected)


def test_nothing_waits_for_the_device(monkeypatch):
    """On tensors without numbers, all launches aside: what asks for one raises there, as does what is elsewhere."""
    launched = []

    class Launch:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, _):
            return lambda *_, **__: launched.append(self.name)

    for name in ("attend_few", "reduce_splits", "prepare_queries"):
        monkeypatch.setattr(attention, name, Launch(name))
    for name in ("bound_pages", "choose_pages", "rest_of"):
        monkeypatch.setattr(choosing, name, Launch(name))
    case = reading(replace(SHAPES["int4 with constants"], sequences=((201, 1), (190, 1))), BUDGET)
    view = replace(case.view, cell_starts=torch.zeros(2, 3 * case.shape.kv_heads + 1).int())
    view.readings[1] = 0
    layer = on_meta(case.layer)
    tables = tuple(each.to("meta") for each in tables_of(view))
    for is_recorded in (False, True):
        kernels = TritonAttention(SMALL)
        if is_recorded:
            kernels.record(view, tables, Room.of(view))
        assert kernels.attend(case.query.to("meta"), layer, view, RULE).is_meta
    assert {"bound_pages", "choose_pages", "rest_of", "attend_few"} < set(launched)


@pytest.mark.parametrize("readings", [[(4, 0), (5, 1)], [(4, 1), (0, 0)]], ids=["all choose", "one reads all"])
def test_a_recorded_step_follows_its_tables(readings):
    """The bits of one that is not recorded, whoever of the sequences has more tokens and whatever is read."""
    case = reading(replace(PLAIN, sequences=((201, 1), (150, 1))), BUDGET)
    view = replace(case.view, readings=torch.tensor(readings).int())
    kernels = TritonAttention(SMALL)
    plan = kernels.record(view, tables_of(view), Room.of(view))
    for lengths, pages in (([202, 150], 4), ([151, 151], 3), ([60, 20], 4)):
        view.context_lengths.copy_(torch.tensor(lengths))
        view.readings[0, 0] = pages
        assert plan.reading.covers(view)
        expected = TritonAttention(SMALL).attend(case.query, case.layer, replace(view), RULE)
        assert torch.equal(kernels.attend(case.query, case.layer, view, RULE), expected)


def test_padded_steps_of_all_numbers_of_sequences_are_computed():
    """Eager, and recorded with few of them and replayed with more: a recording is for a number of rows."""
    case = reading(replace(PLAIN, sequences=((201, 1), (150, 1), (190, 1))), BUDGET)
    query = torch.cat((case.query, torch.zeros_like(case.query[:1])))
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, RULE)
    kernels, padded = TritonAttention(SMALL), _padded(case.view, 1)
    assert (kernels.attend(query, case.layer, padded, RULE)[:3] - expected).abs().max() < 1e-5
    two = replace(
        case.view,
        page_indices=case.view.page_indices[: case.view.page_starts[2]],
        page_starts=case.view.page_starts[:3],
        query_starts=case.view.query_starts[:3],
        context_lengths=case.view.context_lengths[:2],
        readings=case.view.readings[:2],
    )
    recorded, room = _padded(two, 2), Room.of(padded)
    tables = [*room.tables(recorded)]
    tables[0][: len(two.page_indices)] = two.page_indices
    kernels.record(recorded, tuple(tables), room)
    assert (kernels.attend(query, case.layer, recorded, RULE)[:2] - expected[:2]).abs().max() < 1e-5
    for table, numbers in zip(tables, tables_of(padded), strict=True):
        table[: len(numbers)] = numbers
    assert (kernels.attend(query, case.layer, recorded, RULE)[:3] - expected).abs().max() < 1e-5


def test_a_recording_is_for_what_was_read_in_one_before_as_well():
    case = reading(replace(PLAIN, sequences=((201, 1), (150, 1))), BUDGET)
    more, later = (
        replace(case.view, readings=torch.tensor([numbers] * 2).int()) for numbers in ((BUDGET + 1, 0), (BUDGET, 1))
    )
    kernels = TritonAttention(SMALL)
    before = kernels.record(more, tables_of(more), Room.of(more)).reading
    both = kernels.record(later, tables_of(later), Room.of(later), before=before).reading
    assert both.covers(more)
    assert both.covers(later)
    assert not before.covers(later)


def test_recorded_steps_are_for_no_more_than_they_read():
    case = reading(replace(PLAIN, sequences=((201, 1), (150, 1))), BUDGET)
    plan = TritonAttention(SMALL).record(case.view, tables_of(case.view), Room.of(case.view))
    for readings, is_covered in (
        ([(3, 0), (4, 0)], True),
        ([(4, 0), (5, 0)], False),
        ([(4, 0), (4, 1)], False),
        ([(4, 0), (0, 0)], False),
    ):
        assert plan.reading.covers(replace(case.view, readings=torch.tensor(readings).int())) is is_covered


def on_meta(layer):
    summaries = LayerSummaries(layer.summaries.numbers.to("meta"), layer.summaries.is_made.to("meta"))
    constants = constants_on(torch.device("meta"), {0: layer.constants})[0]
    return replace(layer, pages=layer.pages.to("meta"), summaries=summaries, constants=constants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: (replace(case.layer, summaries=None), case.view, RULE), "no summaries"),
        (lambda case: (case.layer, case.view, AttentionRule(0.1, slopes=(0.1,) * 6)), "positions of tokens"),
        (lambda case: (case.layer, replace(case.view, slots=torch.tensor([400]).int()), RULE), "follow one another"),
        (lambda case: (case.layer, replace(case.view, readings=torch.tensor([[2, 0]]).int()), RULE), "fewest"),
        (lambda case: (case.layer, replace(case.view, cell_starts=torch.full((1, 7), 6).int()), RULE), "not packed"),
    ],
)
def test_what_cannot_be_chosen_is_refused(change, message):
    case = reading(replace(PLAIN, sequences=ONE), BUDGET)
    layer, view, rule = change(case)
    with pytest.raises(ConfigError, match=message):
        TritonAttention(SMALL).attend(case.query, layer, view, rule)
