"""Recurrent layers of Hugging Face models made to keep their state in slots, sequence by sequence.

Transformers' state-space, linear-attention and short-convolution layers (mixers) scan a packed row from end to end, as
if it were one sequence, and without transformers' own cache they begin anew at every step. Here each mixer is called
apart for every sequence, with that sequence's state; those that advance by one token are computed together. Does not
know which slots a step uses (states).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pagoda.errors import UnsupportedModelError
from pagoda.layouts.state import StateKind, StateLayout, StateTensor
from pagoda.models.attention import step_of_call
from pagoda.models.states import LayerStates, MixerCache, Run

# Selective scans of the first Mamba begin at zero whenever they compute several tokens, whatever the state.
RESTARTING_FAMILIES = ("falcon_mamba", "jamba", "mamba", "zamba")

_CACHE_ARGUMENTS = ("cache_params", "past_key_values")


def mixers(network: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """The recurrent layers of a network in order, each with the name under which its forward takes a cache."""
    found = []
    for module in network.modules():
        name = _cache_argument(module)
        is_mixer = name == "cache_params" and not any(map(_takes_states, list(module.modules())[1:]))
        # A short convolution is told from attention by what it is made of.
        is_convolution = name == "past_key_values" and any(map(_is_convolution, module.children()))
        if name is not None and (is_mixer or is_convolution):
            found.append((module, name))
    return found


def attend_states(network: Any) -> None:
    """Let the mixers of `network` keep their states in the slots of the step in flight."""
    restarts = network.config.get_text_config().model_type in RESTARTING_FAMILIES
    for layer, (mixer, argument) in enumerate(mixers(network)):
        mixer.forward = PackedMixer(mixer, argument, layer, restarts)


class PackedMixer:
    """The forward of one mixer over the packed sequences of a step."""

    def __init__(self, mixer: torch.nn.Module, argument: str, layer: int, restarts: bool) -> None:
        self._mixer = mixer
        self._forward = mixer.forward
        self._argument = argument
        self._layer = layer
        self._restarts = restarts

    def __call__(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """`hidden_states` and the result are [1, rows, width]. Masks and transformers' own cache are not used."""
        states = step_of_call(self._mixer, None).next_states(self._layer)
        layer = states.layers[self._layer]
        return torch.cat([self._run(hidden_states[:, run.rows], run, layer) for run in states.runs], dim=1)

    def _run(self, rows: torch.Tensor, run: Run, layer: LayerStates) -> torch.Tensor:
        if len(run.slots) == 1:
            slot = run.slots[0]
            out = self._advance(rows, {key: states[slot : slot + 1] for key, states in layer.items()}, run)
        else:
            indices = run.slot_indices(rows.device)
            gathered = {key: states.index_select(0, indices) for key, states in layer.items()}
            out = self._advance(rows.transpose(0, 1), gathered, run).transpose(0, 1)
            for key, states in layer.items():
                states.index_copy_(0, indices, gathered[key])
        for source, target in run.copies:
            for states in layer.values():
                states[target].copy_(states[source])
        return out

    def _advance(self, rows: torch.Tensor, states: LayerStates, run: Run) -> torch.Tensor:
        """Compute `rows` [sequences, tokens, width] from `states`, which move on."""
        cache = MixerCache(states, run.is_fresh)
        if run.is_fresh or not self._restarts:
            return self._call(rows, cache)
        return torch.cat([self._call(token, cache) for token in rows.split(1, dim=1)], dim=1)

    def _call(self, rows: torch.Tensor, cache: MixerCache) -> torch.Tensor:
        out: torch.Tensor = self._forward(rows, **{self._argument: cache})
        return out


class StateProbe(MixerCache):
    """A cache that notes what one mixer would keep, on the way through its first tokens."""

    def __init__(self) -> None:
        super().__init__({}, is_fresh=True)
        self.tensors: list[StateTensor] = []

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedModelError(f"it keeps {name} in transformers' cache, of which Pagoda knows nothing")

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,  # noqa: ARG002
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> torch.Tensor:
        width = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        self._note(StateKind.CONVOLUTION, state_idx, (*conv_states.shape[1:-1], width), conv_states.dtype)
        return torch.nn.functional.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))

    def update_recurrent_state(
        self,
        recurrent_states: torch.Tensor,
        layer_idx: int,  # noqa: ARG002
        state_idx: int = 0,
    ) -> torch.Tensor:
        self._note(StateKind.RECURRENT, state_idx, tuple(recurrent_states.shape[1:]), recurrent_states.dtype)
        return recurrent_states

    def _note(self, kind: StateKind, index: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.tensors.append(StateTensor(kind, index, shape, full_precision=dtype == torch.float32))


class StateNotes:
    """What the mixers of a network, in another precision than fp32, keep: noted in its next forward after `begin`.

    `unknown` are modules, by name, that take a recurrent state but are no mixers.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.unknown = list(unknown_mixers(network))
        self._probes: list[tuple[torch.nn.Module, list[StateProbe]]] = []
        for mixer, argument in mixers(network):
            made: list[StateProbe] = []
            self._probes.append((mixer, made))
            mixer.forward = _probing(mixer.forward, argument, made)

    def __len__(self) -> int:
        return len(self._probes)

    def begin(self) -> None:
        for _, made in self._probes:
            made.clear()

    def layouts(self) -> tuple[StateLayout, ...]:
        """Raises UnsupportedModelError if some mixer did not run once, or keeps its state elsewhere."""
        for mixer, made in self._probes:
            if len(made) != 1 or not made[0].tensors:
                raise UnsupportedModelError(
                    f"{type(mixer).__name__} keeps recurrent state in a way of its own: it ran {len(made)} times and "
                    "stored nothing in the cache of transformers."
                )
        return tuple(StateLayout(tuple(made[0].tensors)) for _, made in self._probes)


def _probing(forward: Callable[..., Any], argument: str, made: list[StateProbe]) -> Callable[..., Any]:
    def probed(hidden_states: torch.Tensor, *others: Any, **_: Any) -> Any:
        if others:
            raise UnsupportedModelError("a recurrent layer takes more than hidden states")
        made.append(StateProbe())
        return forward(hidden_states, **{argument: made[-1]})

    return probed


def _cache_argument(module: torch.nn.Module) -> str | None:
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)


def _takes_states(module: torch.nn.Module) -> bool:
    return _cache_argument(module) == "cache_params"


def _is_convolution(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv1d)


def unknown_mixers(network: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules that take a recurrent state but are no mixers and have none inside."""
    known = {mixer for mixer, _ in mixers(network)}
    for name, module in network.named_modules():
        if _takes_states(module) and not known & set(module.modules()):
            yield name, module
