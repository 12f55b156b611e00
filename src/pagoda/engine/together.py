"""Draws on a GPU: the next tokens of many sequences from logits that stay there, as do the tokens.

The same draws as `sampling.py` makes row by row: the same order of truncation, and the race of `race.py`, whose times
hang on a draw's key and a token's id alone. Nothing here waits for the device.
"""

from __future__ import annotations

import math

import torch

from pagoda.engine.exchange import sent
from pagoda.engine.race import LAST_SHIFT, LIKELY, MIXES, STEP
from pagoda.engine.request import Sequence
from pagoda.sampling_params import SamplingParams

# Numbers that are worked on at a time: in fp64 a few arrays of so many take half a gigabyte.
MOST_NUMBERS = 1 << 23


@torch.inference_mode()
def draw_together(logits: torch.Tensor, rows: list[tuple[Sequence, int]], num_ahead: int = 0) -> torch.Tensor:
    """The next token of every sequence from its row of fp32 `logits` [rows, vocabulary]: int64 [sequences].

    It is the token after `num_ahead` others if those are drawn and not known yet. The keys of draws are not taken.
    """
    greedy = [index for index, (sequence, _) in enumerate(rows) if sequence.request.params.temperature == 0]
    raced = [index for index, (sequence, _) in enumerate(rows) if sequence.request.params.temperature > 0]
    tokens = [_of_rows(logits, [rows[index] for index in greedy]).argmax(dim=-1)] if greedy else []
    count = max(1, MOST_NUMBERS // logits.shape[1])
    some = [[rows[index] for index in raced[start : start + count]] for start in range(0, len(raced), count)]
    drawn = torch.cat([*tokens, *(_raced(logits, each, num_ahead) for each in some)])
    if not greedy or not raced:
        return drawn
    return drawn[sent(torch.tensor(greedy + raced).argsort(), logits.device)]


def _raced(logits: torch.Tensor, rows: list[tuple[Sequence, int]], num_ahead: int) -> torch.Tensor:
    """int64 [rows]."""
    keys = [sequence.draw_key(num_ahead) for sequence, _ in rows]
    return first_to_arrive(weigh(_of_rows(logits, rows), [sequence.request.params for sequence, _ in rows]), keys)


def _of_rows(logits: torch.Tensor, rows: list[tuple[Sequence, int]]) -> torch.Tensor:
    places = [row for _, row in rows]
    if places == list(range(len(logits))):
        return logits
    return logits[sent(torch.tensor(places), logits.device)]


def weigh(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """How likely each token is drawn, fp32 [rows, vocabulary], up to a factor; 0 for those that are cut off."""
    smallest = torch.finfo(torch.float32).tiny
    largest = logits.amax(dim=-1, keepdim=True)
    scaled = (logits - largest) / _column(logits, [max(each.temperature, smallest) for each in params])
    if any(each.min_p > 0 for each in params):
        least = [math.log(each.min_p) if each.min_p > 0 else -math.inf for each in params]
        scaled = scaled.masked_fill(scaled < _column(logits, least), -math.inf)
    if not any(0 < each.top_k < logits.shape[1] or each.top_p < 1 for each in params):
        return scaled.exp()
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    counts = _column(logits, [each.top_k if each.top_k > 0 else logits.shape[1] for each in params])
    ordered = ordered.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= counts, -math.inf)
    weights = ordered.softmax(dim=-1)
    before = weights.cumsum(dim=-1) - weights
    cut = before >= _column(logits, [each.top_p if each.top_p < 1 else math.inf for each in params])
    cut[:, :1].fill_(False)
    return torch.zeros_like(weights).scatter_(1, order, weights.masked_fill(cut, 0.0))


def first_to_arrive(weights: torch.Tensor, keys: list[int]) -> torch.Tensor:
    """`race.first_to_arrive` for each row of `weights` [rows, vocabulary]: int64 [rows]."""
    signed = sent(torch.tensor([_signed(key) for key in keys]), weights.device)[:, None]
    is_likely = weights > LIKELY * weights.amax(dim=-1, keepdim=True)
    ids = torch.arange(weights.shape[1], device=weights.device)
    times = (-numbers(signed, ids).log() / weights).masked_fill_(~is_likely, math.inf)
    soonest, first = times.min(dim=-1)
    unlikely = weights.double().masked_fill_(is_likely, 0.0)
    ends = unlikely.cumsum(dim=-1)
    total = ends[:, -1]
    of_rest, within = numbers(signed, -torch.arange(1, 3, device=weights.device)).unbind(dim=-1)
    wanted = torch.minimum(within * total, total.nextafter(torch.zeros_like(total)))
    picked = torch.searchsorted(ends, wanted[:, None], right=True).squeeze(1).clamp(max=weights.shape[1] - 1)
    return torch.where((total > 0) & (-of_rest.log() / total < soonest), picked, first)


def numbers(keys: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """`race.numbers`: fp64 [rows, tokens] of int64 `keys` [rows, 1] and `token_ids` [tokens]."""
    mixed = token_ids * _signed(STEP) + keys
    for shift, factor in MIXES:
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    mixed ^= _shifted(mixed, LAST_SHIFT)
    return (_shifted(mixed, 12).double() + 0.5) * 2.0**-52


def _signed(bits: int) -> int:
    """64 bits as the numbers with a sign that torch has."""
    return bits - (1 << 64) if bits >= 1 << 63 else bits


def _shifted(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """To the right, as numbers without a sign."""
    return (numbers >> count) & ((1 << (64 - count)) - 1)


def _column(logits: torch.Tensor, values: list[float] | list[int]) -> torch.Tensor:
    return sent(torch.tensor(values), logits.device)[:, None]
