"""Attention of `deterministic` on GPUs, interpreted: a row has the same bits, whatever it is computed with."""

from dataclasses import replace

import pytest
import torch

from kernels.cases import starts
from kernels.interpreted import SMALL
from kernels.rounding import tolerance
from pagoda.formats.plain import BF16
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import AttentionRule, GroupView
from pagoda.kernels.reference import ReferenceKernels
from pagoda.kernels.triton.even import MANY, SPLIT_TOKENS, WIDE, EvenAttention, even
from pagoda.kernels.triton.plan import Room, tables_of
from pagoda.kernels.triton.tiles import HOPPER

# NumPy, which interprets, warns where a row has nothing in a split.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
RULE = AttentionRule(0.25)
SIZES = {"kv_heads": 1, "group": 2, "key_width": 16, "value_width": 16, "page_tokens": 16}
# One split, and several.
LENGTHS = (40, 150)


def test_rows_do_not_depend_on_how_many_there_are_nor_on_other_sequences(shape, make_case):
    case = make_case(shape(format=INT8, dtype=torch.bfloat16, sequences=((0, 40), (0, 150)), **SIZES))
    whole = EvenAttention(SMALL).attend(case.query, case.layer, case.view, RULE)
    expected = ReferenceKernels().attend(case.query, case.layer, case.view, RULE)
    limit = tolerance(case.shape, RULE) * float(case.value.abs().max())
    torch.testing.assert_close(whole.float(), expected.float(), rtol=0, atol=limit)
    first_rows, first_pages = starts(list(LENGTHS)).tolist(), case.view.page_starts.tolist()
    for sequence, length in enumerate(LENGTHS):
        pages = case.view.page_indices[first_pages[sequence] : first_pages[sequence + 1]]
        end = 0
        for count in (1, 7, 20, length - 28):
            end += count
            view = GroupView(pages, starts([len(pages)]), starts([count]), torch.tensor([end], dtype=torch.int32))
            rows = slice(first_rows[sequence] + end - count, first_rows[sequence] + end)
            alone = EvenAttention(SMALL).attend(case.query[rows], case.layer, view, RULE)
            assert torch.equal(alone, whole[rows])


def test_a_recorded_step_follows_its_tables(shape, make_case):
    """The bits of one that is not recorded, however long its contexts are, as far as there is room."""
    case = make_case(shape(format=INT8, dtype=torch.bfloat16, sequences=((100, 1), (0, 1), (37, 1)), **SIZES))
    kernels, view = EvenAttention(SMALL), case.view
    kernels.record(view, tables_of(view), Room.of(view))
    for lengths in ([101, 1, 38], [3, 1, 33]):
        view.context_lengths.copy_(torch.tensor(lengths))
        expected = EvenAttention(SMALL).attend(case.query, case.layer, replace(view), RULE)
        assert torch.equal(kernels.attend(case.query, case.layer, view, RULE), expected)


def test_only_the_way_of_many_is_other():
    table = even(SMALL)
    assert (table.many, table.many_split_tokens) == (MANY, SPLIT_TOKENS)
    other = {name: getattr(SMALL, name) for name in ("many", "many_codes", "many_biased", "many_split_tokens")}
    assert replace(table, **other) == SMALL


@pytest.mark.parametrize(("width", "tile"), [(128, MANY), (256, WIDE)])
def test_tiles_follow_from_the_width_of_heads(width, tile, shape, make_case, monkeypatch):
    sizes = SIZES | {"key_width": width, "value_width": width}
    case = make_case(shape(format=BF16, dtype=torch.bfloat16, sequences=((0, 20), (30, 1)), **sizes))
    kernels, calls = EvenAttention(even(HOPPER)), []
    monkeypatch.setattr(kernels, "_attend_many", calls.append)
    kernels.attend(case.query, case.layer, case.view, RULE)
    assert [call.shape.tile for call in calls] == [tile]
