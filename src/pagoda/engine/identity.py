"""What the pages of an engine are of: what their names, which leave the process, depend on beside tokens."""

from __future__ import annotations

import json

from pagoda.cache.prefix.names import Identity
from pagoda.models.digest import config_digest, weights_digest
from pagoda.models.model import Model
from pagoda.planning.memory import MemoryPlan

# Rotations that depend on how long sequences may be.
LENGTH_MATTERS = ("dynamic", "longrope")


def identity_of(model: Model, memory: MemoryPlan, constants: str | None) -> Identity:
    """Of the pages in `memory`, kept with `constants`; layouts and formats are those of every layer, in order."""
    groups = memory.geometries
    return Identity(
        model=config_digest(model.config),
        weights=weights_digest(model.network),
        layout=repr([each.group for each in groups]),
        format=repr([[each.format_of(layer).name for layer in range(len(each.group.layouts))] for each in groups]),
        constants=constants or "",
        page_tokens=groups[0].page_tokens if groups else 0,
        positions=_positions(model, memory.max_model_len),
    )


def _positions(model: Model, max_model_len: int) -> str:
    rotation = getattr(model.config, "rope_parameters", None) or {}
    length = max_model_len if any(name in repr(rotation) for name in LENGTH_MATTERS) else None
    return json.dumps([rotation, length], sort_keys=True, default=str)
