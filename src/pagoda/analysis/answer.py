"""The answer of a plan as frozen data: bytes, tokens, users and seconds; None where nothing was said to tell by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pagoda.analysis.activations import Activations
from pagoda.analysis.effects import Effect
from pagoda.analysis.floors import DecodeFloor, PrefillFloor
from pagoda.analysis.machines import Machine
from pagoda.analysis.options import PlanOptions
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.planning.memory import MemoryPlan


@dataclass(frozen=True)
class ModelSize:
    """The model. `active_parameters` are those that one token passes through; experts are routed.

    weights_are: how they are kept, if not in `dtype`, in which the model computes.
    """

    name: str
    source: str
    dtype: str
    parameters: int | None
    active_parameters: int | None
    weight_nbytes: int | None
    weights_are: str
    max_model_len: int | None
    num_states: int  # recurrent layers
    state_nbytes: int  # of one sequence, however long
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GroupSize:
    """One group of layers: what a token takes in all of them, and a sequence of the plan's context."""

    name: str
    num_layers: int
    heads: str  # "8 x 128"
    nbytes_per_token: float
    context_tokens: int  # of the context that are kept
    context_nbytes: int  # in whole pages
    page_nbytes: int


@dataclass(frozen=True)
class Budget:
    """How the memory of one device is divided."""

    memory_nbytes: int | None
    weight_nbytes: int
    activation_nbytes: int
    cache_nbytes: int


@dataclass(frozen=True)
class FormatPlan:
    """What pages in one format are enough for. `obstacle` says why they cannot be; nothing else is told then.

    nbytes_per_token: of all groups, while none has reached its window; `nbytes_per_encoder_token` of what an encoder
    makes. kept_nbytes: keys and values of one user's context, no page rounded up; context_nbytes: one user in whole
    pages, with its states, on all devices. users_nbytes: all users, a shared prefix once.
    overtakes_at: the context at which the cache of the users is larger than the weights. longest_context: of one user
    alone. users_by_memory: how many fit; users: how many the engine runs at once, with its seats.
    """

    name: str
    label: str
    obstacle: str | None = None
    groups: tuple[GroupSize, ...] = ()
    geometries: tuple[PageGeometry, ...] = ()  # of the groups
    nbytes_per_token: float = 0.0
    nbytes_per_encoder_token: float = 0.0
    kept_nbytes: int = 0
    context_nbytes: int = 0
    users_nbytes: int = 0
    overtakes_at: int | None = None
    longest_context: int | None = None
    limited_by: str | None = None
    users_by_memory: int | None = None
    users: int | None = None
    users_without_sharing: int | None = None
    memory: MemoryPlan | None = None  # of one device: what an engine would start with
    decode: tuple[DecodeFloor, ...] = ()


@dataclass(frozen=True)
class PageWaste:
    """What the last page of a sequence leaves empty, on average and at worst, with pages of `page_tokens`."""

    page_tokens: int
    expected_nbytes: float
    worst_nbytes: int
    share: float  # of the context's bytes, expected


@dataclass(frozen=True)
class Sharding:
    """Heads over devices: `copies` of what a token leaves behind are kept in all."""

    gpus: int
    copies: float
    weight_nbytes: int | None  # of one device
    nbytes_per_token: float  # of one device
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Everything about one model, one machine and one load. The first of `formats` is the one asked about."""

    model: ModelSize
    machine: Machine
    options: PlanOptions
    context: int
    users: int
    output_tokens: int
    encoder_tokens: int
    formats: tuple[FormatPlan, ...]
    effects: tuple[Effect, ...]
    waste: tuple[PageWaste, ...]
    states: StateGeometry  # of one sequence
    activations: Activations
    sharding: Sharding
    budget: Budget | None
    prefill: PrefillFloor | None

    @property
    def main(self) -> FormatPlan:
        return self.formats[0]

    def as_json(self) -> dict[str, Any]:
        """Numbers, text, lists and dictionaries of them."""
        told = asdict(self)
        for each in told["formats"]:
            del each["memory"], each["geometries"]
            for floor in each["decode"]:
                floor["tokens_per_second"] = floor["users"] / floor["seconds"]
        del told["states"]
        told["activations"]["nbytes"] = self.activations.nbytes
        return told
