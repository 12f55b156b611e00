"""What the keys of a model have in common (`formats/constants.py`), measured by running it over a text.

Keys are looked at as they come to attention, so every family that attends through pages can be measured. How a layer
rotates them is found out from a second run at other positions: the keys of the first layers, turned back, must be the
same. Where no known rotation explains them nothing is taken off, and only the scales of channels are measured.

The results are rounded to few bits, so that processors that round otherwise agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pagoda.formats.constants import MOST_PAIRS, KeyConstants, PageTurns
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.kernels.base import Kernels
from pagoda.kernels.rotation import PairRotation
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import PagedStep
from pagoda.models.model import Model
from pagoda.models.passage import Passage, can_run

# The first tokens are not looked at: their keys are like no others (arXiv 2309.17453).
NUM_SINK_TOKENS = 16
PAGE_TOKENS = 32
# Of the second run, which finds out how keys are rotated.
SHIFTED_TOKENS = 64
SHIFT = 1000
# How far keys turned back may lie apart, as a share of their length: of rounding to bf16, layer by layer.
MOST_DIFFERENCE = 0.1
# A base is turned once a page: pairs that turn by more within one have none, and so have those that gain little.
MOST_TURN = 0.5
LEAST_GAIN = 0.5
SMALLEST_DEVIATION = 2.0**-20
MOST_SCALE_BITS = 20


@dataclass(frozen=True)
class KeyStatistics:
    """Of pairs of channels of the heads of one layer, on keys turned back as `rotation` turned them.

    Unless that `is_explained`, means depend on positions.
    """

    rotation: PairRotation
    means: torch.Tensor  # fp32 [heads, pairs, 2]
    # Fp32 [heads, pairs, 2], the mean of both channels' where they turn.
    variances: torch.Tensor
    query_squares: torch.Tensor  # over all queries of a head's keys
    is_explained: bool


@dataclass(frozen=True)
class ScaleRule:
    """What channels are scaled by: a power of their keys' deviation over one of their queries' size.

    Errors are equal for all channels of a group of codes, and weigh as much as queries do: where a group's range is as
    long as the root of all its channels' squares, the root of both is best.
    """

    key_power: float
    query_power: float


@dataclass(frozen=True)
class _Seen:
    """Keys [tokens, heads, width] of an attention call, and the mean squares of their queries [heads, width]."""

    keys: torch.Tensor
    query_squares: torch.Tensor


class _ObservedStep(PagedStep):
    """A step that keeps what attention calls bring."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[_Seen] = []

    def attend(self, query: torch.Tensor, key: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        squares = query[NUM_SINK_TOKENS:].float().square().mean(dim=0).unflatten(0, (key.shape[1], -1)).mean(dim=1)
        self.seen.append(_Seen(key.clone().cpu(), squares.cpu()))  # a view would keep all that it is a part of
        return super().attend(query, key, *arguments, **options)


@torch.inference_mode()
def measure(model: Model, kernels: Kernels, token_ids: torch.Tensor) -> dict[SiteSlot, KeyStatistics]:
    """The statistics of every layer that writes pages, from a run over `token_ids`, of which there are enough.

    Layers whose keys are not all finite are left out: the request of a token that breaks a model ends by itself.
    """
    runs = _ShiftedRuns(model, kernels, token_ids)
    found = {}
    for number, (site, call) in enumerate(zip(model.spec.sites, runs.seen, strict=True)):
        key = call.keys.float()
        if not site.writes or not key.isfinite().all() or not call.query_squares.isfinite().all():
            continue
        rotation, is_explained = runs.rotation(number)
        found[site] = _statistics(key, call.query_squares, rotation, is_explained)
    return found


@torch.inference_mode()
def rotations(model: Model, kernels: Kernels) -> dict[SiteSlot, PairRotation]:
    """How layers that write pages turn keys, of those for which that is sure."""
    if not can_run(model):
        return {}
    runs = _ShiftedRuns(model, kernels, torch.arange(1, SHIFTED_TOKENS + 1) * 7919 % model.vocab_size)
    found = {site: runs.rotation(number) for number, site in enumerate(model.spec.sites) if site.writes}
    return {site: rotation for site, (rotation, is_explained) in found.items() if is_explained}


class _ShiftedRuns:
    """What attention calls bring of `token_ids`, and of the first of these at later positions."""

    def __init__(self, model: Model, kernels: Kernels, token_ids: torch.Tensor) -> None:
        self._model = model
        self.seen = _run(model, kernels, token_ids, 0)
        self._shift = SHIFT if model.most_model_len is None else min(SHIFT, model.most_model_len - SHIFTED_TOKENS)
        is_room = self._shift > 0
        self._moved = _run(model, kernels, token_ids[:SHIFTED_TOKENS], self._shift) if is_room else None
        self._frequencies = _frequencies(model)

    def rotation(self, number: int) -> tuple[PairRotation, bool]:
        """How call `number` turns its keys, and whether that explains how they differ."""
        site = self._model.spec.sites[number]
        plane = self._model.spec.groups[site.group].layouts[site.layer].planes[0]
        candidates = [each for turns in self._frequencies for each in _rotations(plane.value_width, plane.width, turns)]
        moved = None if self._moved is None else self._moved[number].keys
        return _rotation(self.seen[number].keys.float(), moved, self._shift, candidates)


def constants_of(statistics: KeyStatistics, rule: ScaleRule, turns: PageTurns, page_tokens: int) -> KeyConstants:
    """What is taken off the keys of a layer, and the scales of their channels."""
    rotation, means, variances = statistics.rotation, statistics.means, statistics.variances
    common = rotation.averaged(means.square())
    may_be_based = statistics.is_explained & (rotation.frequencies.abs() * page_tokens < MOST_TURN)
    share = common.mean(dim=-1) / variances.mean(dim=-1)
    gains, index = torch.where(may_be_based, share, 0.0).topk(min(MOST_PAIRS, len(rotation.frequencies)))
    is_based = gains > LEAST_GAIN
    num_pairs = int(is_based.sum(dim=-1).max())  # of the head that has most
    index, is_based = index[:, :num_pairs], is_based[:, :num_pairs]
    is_taken = torch.zeros_like(share, dtype=torch.bool).scatter_(-1, index, is_based)
    squares = torch.where(is_taken[..., None], variances, variances + common)
    bits = (squares.log2() * rule.key_power - statistics.query_squares.log2() * rule.query_power) / 2
    scales = bits.round().clamp(-MOST_SCALE_BITS, MOST_SCALE_BITS).exp2()
    bases = torch.take_along_dim(means, index[..., None], dim=1) * is_based[..., None]
    by_channel = torch.ones(len(means), 2 * len(rotation.frequencies))
    by_channel[:, rotation.channels.flatten()] = scales.flatten(1)
    return KeyConstants(
        scales=by_channel,
        pairs=torch.cat((rotation.channels[index], index[..., None]), dim=-1).int().contiguous(),
        bases=bases.bfloat16().float().contiguous(),
        turns=turns,
    )


def _run(model: Model, kernels: Kernels, token_ids: torch.Tensor, shift: int) -> list[_Seen]:
    """What every attention call brings, at positions from `shift` on."""
    geometries = page_geometries(model.spec, own_format(model.dtype), PAGE_TOKENS)
    passage = Passage(model, kernels, geometries, len(token_ids), position=shift)
    return passage.run(token_ids, torch.tensor([len(token_ids) - 1]), _ObservedStep)[1].seen


def _frequencies(model: Model) -> list[torch.Tensor]:
    """The angles per token of every rotary embedding in the network, fp64 [pairs]."""
    found = [
        buffer.cpu().double()
        for name, buffer in model.network.named_buffers()
        if name.rpartition(".")[2].endswith("inv_freq") and buffer.dim() == 1 and len(buffer)
    ]
    return [each for index, each in enumerate(found) if not any(torch.equal(each, other) for other in found[:index])]


def _rotation(
    key: torch.Tensor, moved: torch.Tensor | None, shift: int, candidates: list[PairRotation]
) -> tuple[PairRotation, bool]:
    """Which of `candidates` turns `key`, if any, and whether that explains what it is `moved` by `shift` tokens."""
    width = key.shape[-1]
    none = PairRotation(torch.arange(width - width % 2).view(2, -1).T, torch.zeros(width // 2, dtype=torch.float64))
    if moved is None or width % 2:
        return none, False
    key = key[: len(moved)]
    candidates = [none, *candidates]
    differences = [
        float((each.turned(key, torch.full((len(key),), shift)) - moved).norm() / key.norm()) for each in candidates
    ]
    best = min(range(len(candidates)), key=differences.__getitem__)
    return candidates[best], differences[best] < MOST_DIFFERENCE


def _rotations(first: int, width: int, frequencies: torch.Tensor) -> Iterator[PairRotation]:
    """Pairs of halves and pairs of neighbours, of the channels from `first` on, either way; the others stay."""
    rotated = torch.arange(first, first + 2 * len(frequencies))
    if first + len(rotated) > width or width % 2 or first % 2:
        return
    rest = torch.cat((torch.arange(first).view(2, -1), torch.arange(first + len(rotated), width).view(2, -1)), dim=1).T
    angles = torch.cat((frequencies, torch.zeros(len(rest), dtype=torch.float64)))
    for pairs in (rotated.view(2, -1).T, rotated.view(-1, 2)):
        for signed in (angles, -angles):
            yield PairRotation(torch.cat((pairs, rest)), signed)


def _statistics(
    key: torch.Tensor, query_squares: torch.Tensor, rotation: PairRotation, is_explained: bool
) -> KeyStatistics:
    turned_back = rotation.turned(key, -torch.arange(len(key)))[NUM_SINK_TOKENS:]
    pairs = turned_back[..., rotation.channels]  # [tokens, heads, pairs, 2]
    # Turning leaves the square of a pair as it is.
    variances, squares = map(rotation.averaged, (pairs.var(dim=0), query_squares[:, rotation.channels]))
    smallest = SMALLEST_DEVIATION**2
    return KeyStatistics(
        rotation, pairs.mean(dim=0), variances.clamp(min=smallest), squares.clamp(min=smallest), is_explained
    )
