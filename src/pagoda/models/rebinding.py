"""Classes whose forward finds other things by some of its global names. Knows Python functions only."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import nn


def global_of(kind: type[nn.Module], name: str, attribute: str | None = None) -> Any:
    """What the forward that `kind` defines itself finds by a global name.

    None if it does not ask for that, or not for an `attribute` of it.
    """
    forward = kind.__dict__.get("forward")
    wanted = {name} if attribute is None else {name, attribute}
    if not isinstance(forward, FunctionType) or not wanted <= set(forward.__code__.co_names):
        return None
    return forward.__globals__.get(name)


def rebound(kind: type[nn.Module], name: str, found: Any) -> type[nn.Module]:
    """`kind`, whose own forward finds `found` by the global `name`."""
    forward: Any = kind.__dict__["forward"]
    namespace = forward.__globals__ | {name: found}
    bound = FunctionType(forward.__code__, namespace, forward.__name__, forward.__defaults__, forward.__closure__)
    bound.__kwdefaults__ = forward.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": bound})
