"""The model a `PagedCache` is for: what it leaves behind, and under which number each of its layers asks a cache.

Refuses at once what pages would be wrong or useless for. Leaves the model as it is: it keeps its own attention. Knows
neither pages nor calls.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from pagoda.errors import ConfigError, UnsupportedModelError
from pagoda.layouts.spec import SiteSlot
from pagoda.models.decoder_config import decoder_config
from pagoda.models.discovery import discover
from pagoda.models.positions import max_positions, position_offset
from pagoda.planning.facts import DTYPE_NBYTES, ModelFacts
from pagoda.planning.lengths import CHANGING_KINDS

# By these arguments calls are told apart: where a sequence begins, and how many logits are read.
NEEDED_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "logits_to_keep")
WINDOW_KINDS = ("sliding_attention", "chunked_attention")
KINDS = ("full_attention", *WINDOW_KINDS, "dummy")


@dataclass(frozen=True)
class CachedLayer:
    """A layer as transformers numbers it: where its keys and values go, and the window that its cache shows of them.

    `slot` is None for a layer that keeps none of its own.
    """

    slot: SiteSlot | None
    window: int | None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what is known of it. `network` and `config` are what `engine/identity.py` asks for."""

    network: Any
    facts: ModelFacts
    layers: tuple[CachedLayer, ...]

    @property
    def config(self) -> Any:
        return self.network.config

    @classmethod
    def of(cls, model: Any) -> Subject:
        """Raises ConfigError or UnsupportedModelError, which say why, for what cannot use pages."""
        if not isinstance(model, PreTrainedModel):
            raise ConfigError(
                f"PagedCache takes a model of transformers, and this is a {type(model).__name__}; give the model "
                "itself, without what wraps it."
            )
        config = model.config
        _check(model, config)
        spec = discover(config, type(model)._from_config).spec
        if spec.states:
            raise UnsupportedModelError(
                f"{config.model_type} has recurrent layers, whose states PagedCache does not keep; pagoda.LLM does."
            )
        decoder = decoder_config(config)
        positions = max_positions(config, 0)
        dtype = str(model.dtype).removeprefix("torch.")
        facts = ModelFacts(spec, dtype, int(decoder.vocab_size), positions, positions)
        return cls(model, facts, _layers(config, decoder, [slot for slot in spec.sites if slot.writes]))


def _check(model: Any, config: Any) -> None:
    name = config.model_type
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} has an encoder, whose output PagedCache does not keep; pagoda.LLM does.")
    if str(model.dtype).removeprefix("torch.") not in DTYPE_NBYTES or model.device.type == "meta":
        raise UnsupportedModelError(f"This {name} model computes in {model.dtype} on {model.device}: pages keep none.")
    missing = [each for each in NEEDED_ARGUMENTS if each not in inspect.signature(model.forward).parameters]
    if missing:
        raise UnsupportedModelError(
            f"The forward of {type(model).__name__} takes no {' and no '.join(missing)}, by which a cache can tell "
            "where a sequence begins and how many of its tokens must be computed."
        )
    if position_offset(model):
        raise UnsupportedModelError(f"{name} numbers positions in a way of its own, so pages cannot be told apart.")
    if any(f"'rope_type': '{kind}'" in repr(config.to_dict()) for kind in CHANGING_KINDS):
        raise UnsupportedModelError(
            f"{name} rotates keys by how long the whole sequence is ({' or '.join(CHANGING_KINDS)}), so that keys of "
            "one call are wrong in another; pagoda.LLM fixes the length."
        )


def _layers(config: Any, decoder: Any, slots: list[SiteSlot]) -> tuple[CachedLayer, ...]:
    """In the order of transformers, which the calls that store keys and values come in as well."""
    kinds, settings = get_layer_types_and_kwargs(decoder)
    unknown = sorted({*kinds} - {*KINDS})
    if unknown or len(kinds) - kinds.count("dummy") != len(slots):
        raise UnsupportedModelError(
            f"{config.model_type} keeps something of {len(kinds)} layers ({', '.join(unknown or sorted({*kinds}))}) "
            f"and attends {len(slots)} times: PagedCache knows layers that keep keys and values once each."
        )
    remaining = iter(slots)
    return tuple(
        CachedLayer(None, None)
        if kind == "dummy"
        else CachedLayer(next(remaining), setting.get("sliding_window") if kind in WINDOW_KINDS else None)
        for kind, setting in zip(kinds, settings, strict=True)
    )
