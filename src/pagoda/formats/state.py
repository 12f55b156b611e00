"""How the states of all recurrent layers lie in a slot: the bytes that stand for one sequence at one point."""

from dataclasses import dataclass
from functools import cached_property

from pagoda.formats.page import aligned
from pagoda.layouts.state import StateLayout, StateTensor


@dataclass(frozen=True)
class StateSlot:
    """The bytes of one tensor inside every slot."""

    tensor: StateTensor
    offset: int
    nbytes: int


@dataclass(frozen=True)
class StateGeometry:
    """Layer by layer, tensor by tensor: `slots[layer]` for the recurrent layers of a model, in call order.

    `weight_nbytes` is the size of one number in the precision of the weights.
    """

    layouts: tuple[StateLayout, ...]
    weight_nbytes: int

    @cached_property
    def slots(self) -> tuple[tuple[StateSlot, ...], ...]:
        offset = 0
        layers = []
        for layout in self.layouts:
            slots = []
            for tensor in layout.tensors:
                slots.append(StateSlot(tensor, offset, tensor.nbytes(self.weight_nbytes)))
                offset += aligned(slots[-1].nbytes)
            layers.append(tuple(slots))
        return tuple(layers)

    @cached_property
    def page_nbytes(self) -> int:
        """Bytes of a slot, which is the page of a pool of states."""
        return sum(aligned(slot.nbytes) for slots in self.slots for slot in slots)
