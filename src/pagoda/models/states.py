"""The states of recurrent layers in one step: which slot each sequence has, and what a layer reads and writes there.

Knows slots and rows, not models: `recurrent.py` makes the layers use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from pagoda.formats.state import StateGeometry
from pagoda.kernels.base import GroupView
from pagoda.layouts.state import StateKind

# The tensors of one layer, each [slots or sequences, *its shape].
LayerStates = dict[tuple[StateKind, int], torch.Tensor]


def typed_states(geometry: StateGeometry, pages: torch.Tensor, dtype: torch.dtype) -> tuple[LayerStates, ...]:
    """The tensors of every recurrent layer over all slots of a pool, `pages` uint8 [slots, page_nbytes], as views."""
    layers = []
    for slots in geometry.slots:
        states: LayerStates = {}
        for slot in slots:
            tensor = slot.tensor
            numbers = pages[:, slot.offset : slot.offset + slot.nbytes].view(
                torch.float32 if tensor.full_precision else dtype
            )
            states[tensor.kind, tensor.index] = numbers.unflatten(1, tensor.shape)
        layers.append(states)
    return tuple(layers)


@dataclass(eq=False)
class Run:
    """Rows that a layer computes in one call: consecutive tokens of one sequence, or one token of each of several.

    States are copied from slot to slot, as `copies` says, after it.
    """

    rows: slice
    slots: list[int]
    is_fresh: bool
    copies: list[tuple[int, int]] = field(default_factory=list)
    _slot_indices: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Of each sequence."""
        return int(self.rows.stop - self.rows.start) // len(self.slots)

    def slot_indices(self, device: torch.device) -> torch.Tensor:
        if self._slot_indices is None:
            self._slot_indices = torch.tensor(self.slots).to(device)
        return self._slot_indices

    def can_join(self, later: Run) -> bool:
        """Whether `later`, which follows at once, can be computed together with this."""
        runs = (self, later)
        return all(run.num_tokens == 1 and not run.is_fresh for run in runs) and not {*self.slots} & {*later.slots}


class StepStates:
    """The states of the packed sequences of a step: `layers` as `typed_states` gives them, slots by `view`.

    `cuts[s]` are the copies to make on the way through sequence s: after how many of its rows, and to which slot.
    """

    def __init__(
        self, layers: tuple[LayerStates, ...], view: GroupView, cuts: Sequence[Sequence[tuple[int, int]]]
    ) -> None:
        self.layers = layers
        self._view = view
        self._cuts = cuts

    @cached_property
    def runs(self) -> list[Run]:
        """Calls that together compute all rows, in order."""
        runs: list[Run] = []
        for run in self._pieces():
            if runs and runs[-1].can_join(run):
                runs[-1] = Run(
                    slice(runs[-1].rows.start, run.rows.stop),
                    runs[-1].slots + run.slots,
                    is_fresh=False,
                    copies=runs[-1].copies + run.copies,
                )
            else:
                runs.append(run)
        return runs

    def _pieces(self) -> list[Run]:
        """Each sequence for itself, in pieces that end where it must be copied."""
        view = self._view
        starts, lengths = view.query_starts.tolist(), view.context_lengths.tolist()
        pieces = []
        for index, (slot, length) in enumerate(zip(view.page_indices.tolist(), lengths, strict=True)):
            start, stop = starts[index : index + 2]
            is_fresh = length == stop - start
            for num_rows, target in (*self._cuts[index], (stop - start, None)):
                end = starts[index] + num_rows
                if end > start:
                    pieces.append(Run(slice(start, end), [slot], is_fresh))
                    start, is_fresh = end, False
                if target is not None:
                    pieces[-1].copies.append((slot, target))
        return pieces


class MixerCache:
    """What transformers' recurrent layers expect of a cache, over the states of the sequences in one call.

    Equal to `LinearAttentionLayer` of transformers but for where the tensors are. `layer_idx` is not looked at: a
    layer only ever sees its own.
    """

    def __init__(self, states: LayerStates, is_fresh: bool) -> None:
        self._states = states
        self._is_fresh = is_fresh

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:  # noqa: ARG002
        return None if self._is_fresh else self._states[StateKind.CONVOLUTION, state_idx]

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:  # noqa: ARG002
        return None if self._is_fresh else self._states[StateKind.RECURRENT, state_idx]

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int = 0) -> bool:  # noqa: ARG002
        return not self._is_fresh

    def is_recording_past(self, layer_idx: int) -> bool:  # noqa: ARG002
        """Whether states are kept so that tokens can be taken back."""
        return False

    def update_conv_state(
        self,
        conv_states: torch.Tensor,  # [sequences, channels, new tokens]
        layer_idx: int,  # noqa: ARG002
        state_idx: int = 0,
        conv_kernel_size: int | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """The inputs before the new ones and the new ones; the last of them are kept."""
        kept = self._states[StateKind.CONVOLUTION, state_idx]
        width = kept.shape[-1]
        if not self._is_fresh:
            inputs = torch.cat([kept, conv_states], dim=-1)
        else:
            inputs = torch.nn.functional.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))
        kept.copy_(inputs[..., -width:])
        return inputs

    def update_recurrent_state(
        self,
        recurrent_states: torch.Tensor,
        layer_idx: int,  # noqa: ARG002
        state_idx: int = 0,
    ) -> torch.Tensor:
        return self._states[StateKind.RECURRENT, state_idx].copy_(recurrent_states)
