"""Which kernels each layer group attends with: the backend's, or the reference where the backend says that it cannot.

Asked once, when pages are bound to a model. Does not know how a backend is found (`dispatch.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pagoda.errors import ConfigError
from pagoda.kernels.base import AttentionKernels, AttentionUse, Kernels, LayerPages
from pagoda.layouts.spec import LayerGroup
from pagoda.registry import lookup


@dataclass(frozen=True)
class GroupKernels:
    """What the layers of `group` attend with; `obstacle` is why that is the reference, if it is in another's place."""

    group: LayerGroup
    kernels: AttentionKernels
    obstacle: str | None = None

    @property
    def notice(self) -> str | None:
        """What users are told of an obstacle."""
        if self.obstacle is None:
            return None
        return f"Layers with {self.group.name} attention run on the slow reference kernels: {self.obstacle}."


@dataclass(frozen=True)
class KernelChoice:
    """The backend, and what it leaves to the reference."""

    backend: Kernels
    groups: tuple[GroupKernels, ...]

    @property
    def notices(self) -> list[str]:
        return [each.notice for each in self.groups if each.notice]


def choose_for(backend: Kernels, group: LayerGroup, uses: Iterable[tuple[LayerPages, AttentionUse]]) -> GroupKernels:
    """What all attention calls on the pages of `group` are answered by.

    Raises ConfigError if `backend` cannot, and was wanted for what the reference does not give.
    """
    obstacle = next(filter(None, (backend.obstacle(layer, use) for layer, use in uses)), None)
    if obstacle is None:
        return GroupKernels(group, backend)
    if backend.is_deterministic:
        raise ConfigError(
            f"deterministic leaves nothing to slower kernels, and {backend.name} cannot serve layers with {group.name} "
            f"attention: {obstacle}; choose another kv_cache_dtype, or leave it out."
        )
    return GroupKernels(group, lookup("kernels", "reference")(), obstacle)
