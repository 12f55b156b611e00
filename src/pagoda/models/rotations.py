"""How the layers of a model turn keys by their positions, found out by running it: keys that stand elsewhere, turned
back, must be the same.

Keys are looked at as they come to attention, so every family that attends through pages can be looked at. Where none of
the known rotations explains the keys of a layer, that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.formats.rotation import PairRotation
from pagoda.kernels.base import Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.attention import PagedStep
from pagoda.models.model import Model
from pagoda.models.passage import Passage, Step, can_run

PAGE_TOKENS = 32
# Of the run at other positions.
SHIFTED_TOKENS = 64
SHIFT = 1000
# How far keys turned back may lie apart, as a share of their length: of rounding to bf16, layer by layer.
MOST_DIFFERENCE = 0.1


@dataclass(frozen=True)
class FoundRotation:
    """What comes nearest to how a layer turns its keys; not that, unless it `is_explained` by it."""

    rotation: PairRotation
    is_explained: bool


class KeyStep(PagedStep):
    """A step that keeps the keys [tokens, heads, width] that attention calls bring."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.keys: list[torch.Tensor] = []

    def attend(self, query: torch.Tensor, key: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        self.keys.append(key.clone().cpu())  # a view would keep all that it is a part of
        return super().attend(query, key, *arguments, **options)


def find_rotations(model: Model, kernels: Kernels) -> dict[SiteSlot, FoundRotation]:
    """Of every layer that writes pages, or of none if a text alone does not run the model.

    Runs it twice over a few tokens.
    """
    if not can_run(model):
        return {}
    token_ids = torch.arange(SHIFTED_TOKENS) * 7919 % model.vocab_size
    return rotations_of(model, kernels, token_ids, run_at(model, kernels, token_ids, 0, KeyStep).keys)


def rotations_of(
    model: Model, kernels: Kernels, token_ids: torch.Tensor, keys: list[torch.Tensor]
) -> dict[SiteSlot, FoundRotation]:
    """The same where it is known what `keys` attention calls bring for `token_ids`. Runs the model once."""
    shift = SHIFT if model.most_model_len is None else min(SHIFT, model.most_model_len - SHIFTED_TOKENS)
    moved: Sequence[torch.Tensor | None] = [None] * len(keys)
    if shift > 0:
        moved = run_at(model, kernels, token_ids[:SHIFTED_TOKENS], shift, KeyStep).keys
    frequencies = _frequencies(model)
    found = {}
    for site, here, there in zip(model.spec.sites, keys, moved, strict=True):
        if site.writes:
            plane = model.spec.groups[site.group].layouts[site.layer].planes[0]
            candidates = [each for angles in frequencies for each in _rotations(plane.value_width, plane.width, angles)]
            found[site] = _rotation(here.float(), there, shift, candidates)
    return found


def run_at(model: Model, kernels: Kernels, token_ids: torch.Tensor, position: int, make_step: type[Step]) -> Step:
    """A step over `token_ids` at positions from `position` on."""
    geometries = page_geometries(model.spec, own_format(model.dtype), PAGE_TOKENS)
    passage = Passage(model, kernels, geometries, len(token_ids), position=position)
    return passage.run(token_ids, torch.tensor([len(token_ids) - 1]), make_step)[1]


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
) -> FoundRotation:
    """Which of `candidates` turns `key`, if any, and whether that explains what it is `moved` by `shift` tokens."""
    width = key.shape[-1]
    none = PairRotation(torch.arange(width - width % 2).view(2, -1).T, torch.zeros(width // 2, dtype=torch.float64))
    if moved is None or width % 2:
        return FoundRotation(none, is_explained=False)
    key = key[: len(moved)]
    candidates = [none, *candidates]
    differences = [
        float((each.turned(key, torch.full((len(key),), shift)) - moved).norm() / key.norm()) for each in candidates
    ]
    best = min(range(len(candidates)), key=differences.__getitem__)
    return FoundRotation(candidates[best], differences[best] < MOST_DIFFERENCE)


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
