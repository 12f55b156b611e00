"""What the keys of a model have in common (`formats/constants.py`), measured by running it over a text.

Keys are looked at as they come to attention, so every family that attends through pages can be measured. How a layer
rotates them is found out from a second run (`rotations.py`). Where no known rotation explains them nothing is taken
off, and only the scales of channels are measured.

The results are rounded to few bits, so that processors that round otherwise agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pagoda.formats.constants import MOST_PAIRS, KeyConstants, PageTurns
from pagoda.formats.rotation import PairRotation
from pagoda.kernels.base import Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.model import Model
from pagoda.models.rotations import KeyStep, rotations_of, run_at

# The first tokens are not looked at: their keys are like no others (arXiv 2309.17453).
NUM_SINK_TOKENS = 16
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


class _ObservedStep(KeyStep):
    """Keeps the mean squares [heads, width] of the queries of every head's keys as well."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.query_squares: list[torch.Tensor] = []

    def attend(self, query: torch.Tensor, key: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        squares = query[NUM_SINK_TOKENS:].float().square().mean(dim=0).unflatten(0, (key.shape[1], -1)).mean(dim=1)
        self.query_squares.append(squares.cpu())
        return super().attend(query, key, *arguments, **options)


@torch.inference_mode()
def measure(model: Model, kernels: Kernels, token_ids: torch.Tensor) -> dict[SiteSlot, KeyStatistics]:
    """The statistics of every layer that writes pages, from a run over `token_ids`, of which there are enough.

    Layers whose keys are not all finite are left out: the request of a token that breaks a model ends by itself.
    """
    step = run_at(model, kernels, token_ids, 0, _ObservedStep)
    rotations = rotations_of(model, kernels, token_ids, step.keys)
    found = {}
    for site, keys, squares in zip(model.spec.sites, step.keys, step.query_squares, strict=True):
        if site.writes and keys.isfinite().all() and squares.isfinite().all():
            turns = rotations[site]
            found[site] = _statistics(keys.float(), squares, turns.rotation, turns.is_explained)
    return found


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
