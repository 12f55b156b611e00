"""Which format the pages of each layer are kept in: reads `kv_cache_dtype` and `kv_cache_dtype_skip_layers`.

Knows names, groups and layers. Does not know how many pages there will be (memory).
"""

from __future__ import annotations

from pagoda.config import EngineConfig
from pagoda.errors import ConfigError
from pagoda.formats.base import Format
from pagoda.formats.mixed import mix
from pagoda.formats.page import PageGeometry
from pagoda.layouts.spec import CacheSpec, Reach
from pagoda.planning.facts import ModelFacts
from pagoda.registry import lookup

# Torch's names of types, and vLLM's of the format that it takes for fp8.
OTHER_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "fp8": "fp8_e4m3"}


def choose_geometries(facts: ModelFacts, config: EngineConfig) -> tuple[PageGeometry, ...]:
    """The geometry of every layer group of a model.

    Raises ConfigError for a format that does not exist or cannot keep the model's keys and values.
    """
    named = _formats_by_reach(config.kv_cache_dtype, facts.dtype)
    skipped = _skipped_layers(facts.spec, config.kv_cache_dtype_skip_layers)
    geometries = []
    for index, group in enumerate(facts.spec.groups):
        others = tuple((layer, _format(facts.dtype, facts.dtype)) for layer in sorted(skipped[index]))
        format = named[group.reach]
        if len(others) == len(group.layouts):  # then that is the format of the group
            format, others = others[0][1], ()
        geometries.append(PageGeometry(group, format, config.block_size, others))
    return tuple(geometries)


def _format(name: str, own: str) -> Format:
    """The format of one name: "auto" is the model's own precision; names that others use work too."""
    name = own if name == "auto" else name
    key, slash, value = name.partition("/")
    if slash:
        return mix(_format(key, own), _format(value, own))
    format: Format = lookup("format", OTHER_NAMES.get(name, name))
    return format


def _formats_by_reach(text: str, own: str) -> dict[Reach, Format]:
    """One name for all groups, or names by reach: "full=int8,sliding=bf16"."""
    if "=" not in text:
        return dict.fromkeys(Reach, _format(text, own))
    named = dict.fromkeys(Reach, _format("auto", own))
    for part in text.split(","):
        reach, _, name = part.partition("=")
        if reach not in set(Reach) or not name:
            raise ConfigError(
                f"kv_cache_dtype is {text!r}; give one format, or formats by reach as in full=int8,sliding=bf16. "
                f"Reaches are {', '.join(Reach)}."
            )
        named[Reach(reach)] = _format(name, own)
    return named


def _skipped_layers(spec: CacheSpec, skipped: tuple[int | str, ...]) -> list[set[int]]:
    """The layers of each group that keep the model's own precision."""
    layers: list[set[int]] = [set() for _ in spec.groups]
    for entry in skipped:
        found = [
            site
            for index, site in enumerate(spec.sites)
            if str(index) == str(entry) or spec.groups[site.group].reach == str(entry)
        ]
        if not found:
            raise ConfigError(
                f"kv_cache_dtype_skip_layers names {entry!r}; layers are 0 to {len(spec.sites) - 1}, and "
                f"{', '.join({group.reach.value for group in spec.groups})} stands for all of that reach."
            )
        for site in found:
            layers[site.group].add(site.layer)
    return layers
