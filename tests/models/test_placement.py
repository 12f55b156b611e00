"""Weights moved to huge pages are the same numbers, tied ones still one tensor."""

import pytest
import torch
from torch import nn

from oracle import families
from pagoda.models import placement, rounding
from pagoda.models.coded import coded_weights
from pagoda.models.placement import ALIGNMENT, move_to_huge_pages
from pagoda.models.rounding import quantize


@pytest.fixture(autouse=True)
def granted(monkeypatch):
    monkeypatch.setattr(placement, "huge_pages", lambda: "madvise")


def network() -> nn.Module:
    """Odd sizes, two tied layers, one parameter that is no run of memory."""
    torch.manual_seed(0)
    made = nn.ModuleDict({"a": nn.Linear(7, 5), "b": nn.Linear(7, 5, bias=False), "c": nn.Linear(3, 9).bfloat16()})
    made["b"].weight.data = made["a"].weight.data
    made["d"] = nn.Linear(4, 6, bias=False)
    made["d"].weight.data = torch.randn(4, 6).T
    return made


def test_numbers_stay_and_move():
    before, after = network(), network()
    assert move_to_huge_pages(after, min_nbytes=0)
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new)
    places = [after[name].weight.data_ptr() for name in "abc"]
    assert places[0] == places[1]
    assert all(place % ALIGNMENT == 0 for place in places)
    assert max(places) - min(places) < 1 << 20
    after["a"].weight.data[0, 0] = 5.0
    assert after["b"].weight[0, 0] == 5.0


def pointers(made: nn.Module) -> list[int]:
    return [each.data_ptr() for each in made.parameters()]


@pytest.mark.parametrize(
    ("name", "answer"),
    [("huge_pages", "never"), ("huge_pages", None), ("available_memory_nbytes", 10), ("available_memory_nbytes", None)],
)
def test_without_huge_pages_or_room_they_stay(monkeypatch, name, answer):
    monkeypatch.setattr(placement, name, lambda: answer)
    made = network()
    before = pointers(made)
    assert not move_to_huge_pages(made, min_nbytes=0)
    assert pointers(made) == before


def test_codes_that_were_laid_out_in_huge_pages_stay(monkeypatch):
    monkeypatch.setattr(rounding, "MIN_ROWS", 1)
    made = families.build_tiny("llama")
    before = {name: each.data_ptr() for name, each in made.named_parameters()}
    quantize(made, "int8")
    coded = {name: each.data.data_ptr() for name, each in coded_weights(made).items()}
    assert move_to_huge_pages(made, min_nbytes=0)
    assert {name: each.data.data_ptr() for name, each in coded_weights(made).items()} == coded
    dense = {name: each.data_ptr() for name, each in made.named_parameters() if name in before}
    assert dense
    assert all(place != before[name] for name, place in dense.items())


def test_small_models_stay():
    made = network()
    before = pointers(made)
    assert not move_to_huge_pages(made)
    assert pointers(made) == before
