"""What one model's cache takes and what memory is enough for, format by format.

Devices that divide the heads are alike, so one of them is planned as the engine would plan it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from pagoda.analysis.activations import Activations
from pagoda.analysis.answer import Budget, FormatPlan, GroupSize
from pagoda.analysis.floors import DecodeFloor, is_cross, kept_tokens, load_nbytes, read_nbytes
from pagoda.analysis.machines import Machine
from pagoda.analysis.options import PlanOptions
from pagoda.analysis.source import Described
from pagoda.analysis.trial import users_at_once
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.formats.state import StateGeometry
from pagoda.planning.facts import MachineFacts, ModelFacts
from pagoda.planning.memory import MemoryPlan, plan_memory
from pagoda.planning.page_formats import choose_geometries
from pagoda.planning.users import Load, group_need
from pagoda.units import format_nbytes

UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Setting:
    """What all formats are planned for."""

    options: PlanOptions
    machine: Machine
    load: Load
    users: int
    weight_nbytes: int | None
    activations: Activations
    budget: Budget | None

    def part_of(self, facts: ModelFacts) -> ModelFacts:
        """The facts of what one device has of the model."""
        gpus = self.options.gpus
        return facts if gpus == 1 else replace(facts, spec=facts.spec.part(gpus))


def check_format(facts: ModelFacts, config: EngineConfig) -> None:
    """Raise ConfigError if there is no such format, whatever the layers of the model."""
    choose_geometries(replace(facts, spec=replace(facts.spec, groups=(), sites=())), config)


class FormatPlanner:
    """Plans one model in one setting, for any format of pages."""

    def __init__(self, model: Described, setting: Setting) -> None:
        self._model = model
        self._setting = setting
        self._part = setting.part_of(model.facts)
        self._state_nbytes = StateGeometry(self._part.spec.states, self._part.number_nbytes).page_nbytes

    def plan(self, name: str, is_main: bool) -> FormatPlan:
        """The plan for pages in the format `name`. Only the main one must be possible."""
        config = self._setting.options.engine_config(kv_cache_dtype=name)
        check_format(self._part, config)
        try:
            part = choose_geometries(self._part, config)
        except ConfigError as error:
            if is_main:
                raise
            return FormatPlan(name, name, obstacle=str(error))
        return self._fill(name, part, config)

    def _fill(self, name: str, part: tuple[PageGeometry, ...], config: EngineConfig) -> FormatPlan:
        setting = self._setting
        whole = choose_geometries(self._model.facts, config)
        label = "/".join(dict.fromkeys(each.format_name for each in whole)) or name
        sizes = FormatPlan(
            name,
            label,
            groups=tuple(self._group_size(each, config) for each in whole),
            geometries=whole,
            nbytes_per_token=sum(each.nbytes_per_token for each in whole if not is_cross(each)),
            nbytes_per_encoder_token=sum(each.nbytes_per_token for each in whole if is_cross(each)),
            kept_nbytes=load_nbytes(whole, setting.load),
            context_nbytes=self._users_nbytes(part, config, 1) * setting.options.gpus,
            users_nbytes=self._users_nbytes(part, config, setting.users) * setting.options.gpus,
            overtakes_at=self._overtakes_at(part),
        )
        if setting.budget is None:
            return replace(sizes, decode=self._decode(part, ()))
        return self._with_memory(sizes, part, replace(config, kv_cache_memory_bytes=setting.budget.cache_nbytes))

    def _with_memory(self, sizes: FormatPlan, part: tuple[PageGeometry, ...], config: EngineConfig) -> FormatPlan:
        memory = self._memory(config)
        load, seats = self._setting.load, self._setting.options.max_num_seqs
        fit = users_at_once(memory, config, load) if load.num_tokens <= memory.max_model_len else 0
        users = min(fit, seats)
        return replace(
            sizes,
            longest_context=self._longest(memory),
            limited_by="memory" if memory.limited_by == "what the page pool holds" else "the model",
            users_by_memory=fit,
            users=users,
            users_without_sharing=min(users_at_once(memory, config, replace(load, num_shared=0)), fit),
            memory=memory,
            decode=self._decode(part, (users,)),
        )

    def _longest(self, memory: MemoryPlan) -> int:
        """What the pages hold and the model takes, whatever is asked about."""
        own = self._model.stretched_from
        return memory.max_model_len if own is None else min(memory.max_model_len, own.most_model_len or UNLIMITED)

    def _memory(self, config: EngineConfig) -> MemoryPlan:
        """What an engine would start with on one device; a length that is asked for spares a warning."""
        longest = max(self._part.max_model_len or UNLIMITED, self._setting.load.num_tokens)
        try:
            return plan_memory(self._part, MachineFacts(None), replace(config, max_model_len=longest))
        except ConfigError as error:
            assert self._setting.budget is not None
            left = format_nbytes(self._setting.budget.cache_nbytes)
            raise ConfigError(
                f"{left} are left for the cache of {self._model.name}, which is too little; give more memory: {error}"
            ) from error

    def _group_size(self, geometry: PageGeometry, config: EngineConfig) -> GroupSize:
        group, load = geometry.group, self._setting.load
        planes = [plane for layout in group.layouts for plane in layout.planes]
        heads = "/".join(map(str, sorted({plane.num_heads for plane in planes})))
        widths = "/".join(map(str, sorted({plane.width for plane in planes})))
        need = group_need(geometry, load, config.max_num_batched_tokens)
        return GroupSize(
            name=group.name,
            num_layers=len(group.layouts),
            heads=f"{heads} x {widths}",
            nbytes_per_token=geometry.nbytes_per_token,
            context_tokens=kept_tokens(geometry, load),
            context_nbytes=need.pages(1) * geometry.page_nbytes,
            page_nbytes=geometry.page_nbytes,
        )

    def _users_nbytes(self, part: tuple[PageGeometry, ...], config: EngineConfig, users: int) -> int:
        """Pages and states of so many users, on one device."""
        step, load = config.max_num_batched_tokens, self._setting.load
        pages = sum(
            group_need(each, load, step).pages(users) * self._setting.options.page_nbytes(each) for each in part
        )
        return pages + users * self._state_nbytes

    def _overtakes_at(self, part: tuple[PageGeometry, ...]) -> int | None:
        """The context at which the cache of all users is as large as the weights; None if it never is."""
        setting = self._setting
        if setting.weight_nbytes is None:
            return None
        weights = setting.weight_nbytes / setting.options.gpus

        def nbytes(num_tokens: int) -> int:
            kept = load_nbytes(part, replace(setting.load, num_tokens=num_tokens))
            return setting.users * (kept + self._state_nbytes)

        if nbytes(UNLIMITED) < weights:
            return None
        return bisect_left(range(UNLIMITED), weights, key=nbytes)

    def _decode(self, part: tuple[PageGeometry, ...], more_users: tuple[int, ...]) -> tuple[DecodeFloor, ...]:
        """For one user, for those asked about, and for as many as fit."""
        bandwidth = self._setting.machine.bandwidth
        counts = sorted({1, self._setting.users, *more_users} - {0})
        if bandwidth is None or self._setting.weight_nbytes is None:
            return ()
        return tuple(self._decode_floor(part, users, bandwidth) for users in counts)

    def _decode_floor(self, part: tuple[PageGeometry, ...], users: int, bandwidth: float) -> DecodeFloor:
        setting, load = self._setting, self._setting.load
        weights = round(self._read_nbytes(users) / setting.options.gpus)
        # A state is read and written.
        cache = users * (read_nbytes(part, load, setting.options.reading) + 2 * self._state_nbytes)
        return DecodeFloor(users, load.num_tokens, weights, cache, (weights + cache) / bandwidth)

    def _read_nbytes(self, users: int) -> float:
        """Of the weights that a step reads: all where their parts are not known, or their share if all are alike."""
        model, nbytes = self._model, self._setting.weight_nbytes or 0
        count = model.count
        if count is None:
            return nbytes
        if model.read is None or self._setting.options.weights is not None:
            return nbytes * count.read_by(users) / count.total
        return model.read.most - model.read.experts * (1 - count.experts.share_read(users))
