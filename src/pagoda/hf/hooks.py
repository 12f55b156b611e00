"""The hooks by which a cache sees the calls of a model that bring it, and no others.

They hold the cache weakly, and go with it. Knows no pages; what a call means is the business of whoever is told.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Protocol
from weakref import ref


class Called(Protocol):
    """What is passed to a model as `past_key_values`."""

    def enter(self, arguments: dict[str, Any], is_training: bool) -> dict[str, Any]:
        """A call with this cache begins; what the model is called with instead of `arguments`."""

    def leave(self, given: object, is_done: bool) -> None:
        """The call that was `given` these input_ids has ended."""


Handles = tuple[Any, Any]


def hook(cache: Called, model: Any) -> Handles:
    """Let `cache` see its calls of `model`, for as long as there is the cache or until `unhook`."""
    names = tuple(inspect.signature(model.forward).parameters)
    found = ref(cache)
    return (
        model.register_forward_pre_hook(partial(_before, found, names), with_kwargs=True),
        model.register_forward_hook(partial(_after, found), with_kwargs=True, always_call=True),
    )


def unhook(handles: Handles) -> None:
    for handle in handles:
        handle.remove()


def _before(
    found: ref[Called], names: tuple[str, ...], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    cache = found()
    arguments = dict(zip(names, args, strict=False)) | kwargs
    if cache is not None and _brings(arguments, cache):
        return (), cache.enter(arguments, module.training)
    return None


def _after(found: ref[Called], _module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Arguments are by name now. Called as well if the model raises; then there is no output."""
    cache = found()
    if cache is not None and _brings(kwargs, cache):
        cache.leave(kwargs.get("input_ids"), is_done=output is not None)


def _brings(arguments: dict[str, Any], cache: Called) -> bool:
    return arguments.get("past_key_values") is cache
