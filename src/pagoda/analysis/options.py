"""What can be asked of a plan, checked once. Sizes and rates may be numbers, or text with a unit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from pagoda.analysis.machines import Machine, find_machine
from pagoda.cache.compression.base import Policy
from pagoda.cache.compression.choice import NONE, policy_of
from pagoda.cache.reading import Reading, quest_of
from pagoda.checks import as_float, is_number, is_whole, shown
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.units import parse_bandwidth, parse_flops, parse_nbytes

# What is compared where nobody names formats, the first in all other answers.
FORMATS = ("auto", "fp8_e4m3", "int8", "k8v4", "int4")
USUAL_OUTPUT_TOKENS = 256
MAX_TOKENS = 1 << 40
MAX_GPUS = 1 << 16
MOST = 1e30
OF_ENGINE = ("block_size", "max_num_batched_tokens", "max_num_seqs")
RATES = ("bandwidth", "flops")
COUNTS = {**dict.fromkeys(("context", "users", "output_tokens", "encoder_tokens", "gpus"), 1), "shared_prefix": 0}
NEVER_NONE = ("gpus", "shared_prefix")
PARSERS = {
    **dict.fromkeys(("memory", "weights", "kv_cache_memory_bytes"), parse_nbytes),
    "bandwidth": parse_bandwidth,
    "flops": parse_flops,
}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """One question. None is answered from the model or the machine, or left open.

    memory: of one device; weights, activations and the cache share it. kv_cache_memory_bytes: of the cache alone.
    machine: a preset or "this", for what of memory, bandwidth and flops is not given.
    context: tokens of one user, the last `output_tokens` of them generated. encoder_tokens: what an encoder reads.
    shared_prefix: tokens with which every user's prompt begins. gpus: devices that divide the heads of the model.
    kv_compression: which tokens layers keep that attend to all, as the engine takes it.
    sparse_attention: how much of their pages generated tokens read, as the engine takes it.
    weights: bytes of all weights, if they are kept otherwise than in `dtype`. quantization: to what they are rounded
    when they are loaded.
    """

    memory: int | str | None = None
    machine: str | None = None
    bandwidth: float | str | None = None
    flops: float | str | None = None
    context: int | None = None
    users: int | None = None
    output_tokens: int | None = None
    encoder_tokens: int | None = None
    kv_cache_dtype: tuple[str, ...] = ()
    kv_cache_memory_bytes: int | str | None = None
    kv_compression: str = NONE
    sparse_attention: str = NONE
    shared_prefix: int = 0
    gpus: int = 1
    weights: int | str | None = None
    dtype: str = "auto"
    quantization: str = NONE
    block_size: int = EngineConfig.block_size
    max_num_batched_tokens: int = EngineConfig.max_num_batched_tokens
    max_num_seqs: int = EngineConfig.max_num_seqs

    def __post_init__(self) -> None:
        for name, parse in PARSERS.items():
            value = getattr(self, name)
            object.__setattr__(self, name, _positive(name, parse(value) if isinstance(value, str) else value))
        for name, least in COUNTS.items():
            object.__setattr__(self, name, _count(name, getattr(self, name), least))
        object.__setattr__(self, "kv_cache_dtype", _names(self.kv_cache_dtype) or FORMATS)
        for name in ("kv_compression", "sparse_attention"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; give the name of one, or none.")
        policy_of(self.kv_compression)
        if self.reading is not None and self.policy is not None:
            raise ConfigError("sparse_attention does not go with kv_compression: leave one of the two out.")
        if self.weights is not None and self.quantization != NONE:
            raise ConfigError("weights and quantization both say what weights take: give one of them.")
        if not isinstance(self.machine, str | None):
            raise ConfigError(f"machine is {shown(self.machine)}; give the name of a preset, or this.")
        config = self.engine_config()
        for name in OF_ENGINE:
            object.__setattr__(self, name, getattr(config, name))
        if self.gpus > MAX_GPUS:
            raise ConfigError(f"gpus is {self.gpus}; give at most {MAX_GPUS}.")

    def device(self) -> Machine:
        """The machine that is asked about; what is given wins over what a preset says."""
        found = find_machine(self.machine) if self.machine else Machine("as given")
        given = {name: value for name, value in self._figures().items() if value is not None}
        source = f"{found.source}; some figures as given" if self.machine and given else found.source
        return replace(found, **given, source=source)

    @property
    def policy(self) -> Policy | None:
        return policy_of(self.kv_compression)

    @property
    def reading(self) -> Reading | None:
        """What generated tokens read, if not all."""
        quest = quest_of(self.sparse_attention)
        return None if quest is None else Reading.of(quest, self.block_size)

    def page_nbytes(self, geometry: PageGeometry) -> int:
        """Of a page, with the summary that it is chosen by if there are such."""
        return geometry.page_nbytes + (0 if self.reading is None else geometry.summary_nbytes)

    @property
    def is_endless(self) -> bool:
        """Whether sequences may be longer than the model's context."""
        return self.policy is not None and self.policy.num_sinks is not None

    @property
    def weight_nbytes(self) -> int | None:
        return None if self.weights is None else int(self.weights)

    @property
    def cache_nbytes(self) -> int:
        return int(self.kv_cache_memory_bytes or 0)

    def _figures(self) -> dict[str, Any]:
        """What is given of a machine; one rate of arithmetic is that of every type."""
        flops = None if self.flops is None else {"float32": self.flops}
        return {"memory_nbytes": self.memory, "bandwidth": self.bandwidth, "flops": flops}

    def engine_config(self, **more: Any) -> EngineConfig:
        """The engine's configuration as far as it is asked about."""
        return EngineConfig(
            block_size=self.block_size,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            quantization=self.quantization,
            sparse_attention=self.sparse_attention,
            **more,
        )


def plan_options(**options: Any) -> PlanOptions:
    """Options by name. Raises ConfigError for a name that there is none of."""
    known = [each.name for each in fields(PlanOptions)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}."
            raise ConfigError(f"There is no option {name!r} of a plan; {hint}")
    return PlanOptions(**options)


def _positive(name: str, value: Any) -> Any:
    """A size in whole bytes, or a rate."""
    if value is None:
        return None
    if not is_number(value) or not 1 <= as_float(value) < MOST:
        raise ConfigError(f"{name} is {shown(value)}; give a positive number, or text with a unit.")
    return as_float(value) if name in RATES else int(value)


def _count(name: str, value: Any, least: int) -> int | None:
    """As Python's own number: others reckon in other ways."""
    if value is None and name not in NEVER_NONE:
        return None
    if not is_whole(value) or not least <= value <= MAX_TOKENS:
        raise ConfigError(f"{name} is {shown(value)}; give a whole number from {least} to {MAX_TOKENS:,}.")
    return int(value)


def _names(formats: Any) -> tuple[str, ...]:
    """One name, or several; each once."""
    found = (formats,) if isinstance(formats, str) else formats
    if not isinstance(found, (tuple, list)) or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"kv_cache_dtype is {shown(formats)}; give the name of a format, or several.")
    return tuple(dict.fromkeys(found))
