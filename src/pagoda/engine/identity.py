"""What the pages of an engine are of: what their names, which leave the process, depend on beside tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Protocol

from pagoda.cache.prefix.names import Identity
from pagoda.formats.page import PageGeometry
from pagoda.models.digest import config_digest
from pagoda.planning.memory import MemoryPlan

# Rotations that depend on how long sequences may be.
LENGTH_MATTERS = ("dynamic", "longrope")


class Computing(Protocol):
    """What computes pages."""

    @property
    def config(self) -> Any: ...


def identity_of(model: Computing, memory: MemoryPlan, constants: str | None, weights: str) -> Identity:
    """Of the pages in `memory`, kept with `constants`; `weights` is a digest of the model's. Layouts are those of all
    layers in order, formats too; of one format for all of them only its name.
    """
    groups = memory.geometries
    return Identity(
        model=config_digest(model.config),
        weights=weights,
        layout="; ".join(f"{each.group.name}: {_runs(map(repr, each.group.layouts))}" for each in groups),
        format=_formats(groups),
        constants=constants or "",
        page_tokens=groups[0].page_tokens if groups else 0,
        positions=_positions(model, memory.max_model_len),
    )


def _formats(groups: Iterable[PageGeometry]) -> str:
    names = [[each.format_of(layer).name for layer in range(len(each.group.layouts))] for each in groups]
    different = {name for group in names for name in group}
    return different.pop() if len(different) == 1 else "; ".join(map(_runs, names))


def _runs(words: Iterable[str]) -> str:
    """Words, each with how often it comes in a row."""
    return ", ".join(f"{len([*same])} x {word}" for word, same in groupby(words))


def _positions(model: Computing, max_model_len: int) -> str:
    rotation = getattr(model.config, "rope_parameters", None) or {}
    length = max_model_len if any(name in repr(rotation) for name in LENGTH_MATTERS) else None
    return json.dumps([rotation, length], sort_keys=True, default=str)
