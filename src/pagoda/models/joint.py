"""Linear layers of a module that are given the same rows, such as those of queries, keys and values: one call.

Found while a network is probed. In a step the first of them computes for all, and the others take what is theirs. What
the first step gave is compared, since rows may change in between. Knows how layers are computed together whose weights
are codes; `stacked.py` knows others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import nn

from pagoda.kernels.layers import LayerKernels
from pagoda.models.attention import step_in_flight
from pagoda.models.coded import CodedLinear

# Rows of the first step that are compared, and how far they may differ by rounding: a share of their norm.
PROOF_ROWS = 4
TOLERANCE = 2.0**-6


class Siblings:
    """Names of layers in the order in which they were called, with the rows of each while the network runs."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, torch.Tensor]] = []

    def note(self, name: str, inputs: tuple[Any, ...]) -> None:
        if inputs:
            self._calls.append((name, inputs[0]))

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Those of one module that were given the same rows; of several such groups, no layer twice."""
        groups: dict[tuple[str, int], list[str]] = {}
        for name, rows in self._calls:
            groups.setdefault((name.rpartition(".")[0], id(rows)), []).append(name)
        once = dict.fromkeys(map(tuple, groups.values()))
        names = [name for group in once for name in group]
        return tuple(group for group in once if len(group) > 1 and all(names.count(name) == 1 for name in group))


@contextmanager
def watch_siblings(network: nn.Module, in_parts: bool = False) -> Iterator[Siblings]:
    """Of the linear layers of `network`, while it runs.

    If `in_parts`, what they give are parts of wider rows, as they are where one product is computed for all.
    """
    siblings, hooks = Siblings(), list[Any]()
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: siblings.note(name, inputs)))
            hooks += [module.register_forward_hook(_part_of_wider)] if in_parts else []
    try:
        yield siblings
    finally:
        for hook in hooks:
            hook.remove()


def _part_of_wider(_: nn.Module, __: Any, out: Any) -> Any:
    """What a layer gives; some routers are layers that give several things."""
    return torch.cat((out, out), dim=-1)[..., : out.shape[-1]] if isinstance(out, torch.Tensor) else out


class Joint(nn.Module):
    """Mixed in before `apart`, a class of linear layers: one among `siblings` that are given the same rows."""

    apart: ClassVar[Any]
    siblings: tuple[Self, ...]
    is_proven: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        step = step_in_flight()
        if step is None:
            return self._alone(input)
        ahead = step.ahead.pop(self, None)
        if ahead is None:
            outs = self.together(step.layers, input)
            step.ahead |= {each: (input, out) for each, out in zip(self.siblings, outs, strict=True)}
            return step.ahead.pop(self)[1]
        rows, out = ahead
        if rows is input and (self.is_proven or self._prove(input, out)):
            return out
        alone = self._alone(input)
        for each in self.siblings:
            each.__class__ = each.apart
        return alone

    def together(self, kernels: LayerKernels, input: torch.Tensor) -> Sequence[torch.Tensor]:
        """What each of the siblings gives."""
        raise NotImplementedError

    def _alone(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.apart.forward(self, input)
        return out

    def _prove(self, input: torch.Tensor, out: torch.Tensor) -> bool:
        """Whether the first rows are still those that `out` was computed with."""
        rows, got = (each.reshape(-1, each.shape[-1])[:PROOF_ROWS] for each in (input, out))
        expected = self._alone(rows)
        self.is_proven = bool((got - expected).norm() <= TOLERANCE * expected.norm())
        return self.is_proven


class JointLinear(Joint, CodedLinear):  # type: ignore[override]
    """Coded layers: their rows are coded once, and threads meet once."""

    apart = CodedLinear

    def together(self, kernels: LayerKernels, input: torch.Tensor) -> Sequence[torch.Tensor]:
        return kernels.coded_linears(input, [(each.coded, each.bias) for each in self.siblings])


def let_join(layers: Sequence[Any], kind: type[Joint]) -> None:
    """Make siblings of layers that are of the class that `kind` was mixed into."""
    for each in layers:
        each.__class__ = kind
        each.siblings, each.is_proven = tuple(layers), False


def join(network: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Let the layers of `network` in each of `groups`, by name, be computed together where all have codes."""
    for group in groups:
        layers = [network.get_submodule(name) for name in group]
        if all(type(each) is CodedLinear for each in layers):
            let_join(layers, JointLinear)
