"""Which layers keep their keys without what these have in common, and what that is.

Knows formats, layers and the text that models are measured with. Does not know how keys are looked at (calibration).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from pagoda.engine.memory import MemoryPlan
from pagoda.errors import ConfigError, RequestError
from pagoda.formats.base import Format
from pagoda.formats.constants import KeyConstants, PageTurns
from pagoda.formats.int4 import INT4_PLAIN
from pagoda.formats.rotated import INT4, INT4_ROTATED
from pagoda.formats.scaled import INT8
from pagoda.kernels.base import Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.calibration import FEWEST_TOKENS, MOST_TOKENS, ScaleRule, can_measure, constants_of, measure
from pagoda.models.model import Model
from pagoda.tokenizing import encode

logger = logging.getLogger(__name__)

TEXT = Path(__file__).parent.parent / "assets" / "calibration.txt"
# How channels are scaled. Rows of four bits that are scaled to equal channels lose what the large ones are for.
SCALE_RULES: Mapping[Format, ScaleRule] = {
    INT8: ScaleRule(1.0, 0.0),
    INT4: ScaleRule(0.5, 0.25),
    INT4_ROTATED: ScaleRule(0.5, 0.25),
    INT4_PLAIN: ScaleRule(0.5, 0.25),
}

Constants = dict[SiteSlot, KeyConstants]


def calibration_tokens(source: str, tokenizer: Any, vocab_size: int) -> list[int]:
    """Token ids of the text that `source` names: "auto", "none" or a file. Any ids, if there is no tokenizer.

    Raises ConfigError for a file that is too short or cannot be read, by us or by the tokenizer.
    """
    if source == "none":
        return []
    if tokenizer is None:
        generator = random.Random(0)
        return [generator.randrange(vocab_size) for _ in range(MOST_TOKENS)]
    try:
        text = (TEXT if source == "auto" else Path(source)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"kv_cache_calibration is {source!r}, which cannot be read as text ({error}); give a file, auto or none."
        ) from error
    try:
        token_ids: list[int] = encode(tokenizer, text).input_ids
    except RequestError as error:
        raise ConfigError(
            f"The tokenizer cannot read the text of kv_cache_calibration={source!r}; give another file, or none."
        ) from error
    known = [token for token in token_ids if token < vocab_size][:MOST_TOKENS]
    if source != "auto" and len(known) < FEWEST_TOKENS:
        raise ConfigError(
            f"The text of kv_cache_calibration={source!r} has {len(known)} tokens; give a file of at least "
            f"{FEWEST_TOKENS}, better {MOST_TOKENS}, or none."
        )
    return known


def choose_constants(
    model: Model, kernels: Kernels, memory: MemoryPlan, read_text: Callable[[], list[int]]
) -> Constants:
    """Of every layer whose format keeps them apart; `read_text` gives what to measure the model with, if need be."""
    rules = {site: _scale_rule(memory, site) for site in model.spec.sites}
    if not any(rules.values()) or not can_measure(model):
        return {}
    begin, token_ids = monotonic(), read_text()
    statistics = measure(model, kernels, token_ids)
    turns: dict[tuple[bytes, int], PageTurns] = {}
    constants = {}
    for site, found in statistics.items():
        rule, page_tokens = rules[site], memory.geometries[site.group].page_tokens
        if rule is None:
            continue
        frequencies = found.rotation.frequencies
        key = (frequencies.numpy().tobytes(), page_tokens)
        if key not in turns:
            turns[key] = PageTurns.of(frequencies, page_tokens, -(-memory.max_model_len // page_tokens))
        constants[site] = constants_of(found, rule, turns[key], page_tokens)
    logger.info("Measured what keys have in common over %d tokens in %.1f s.", len(token_ids), monotonic() - begin)
    return constants


def _scale_rule(memory: MemoryPlan, site: SiteSlot) -> ScaleRule | None:
    """None for layers that keep keys as they are."""
    geometry = memory.geometries[site.group]
    plane = geometry.slots[site.layer][0].plane
    return None if plane.value_width else SCALE_RULES.get(geometry.format_of(site.layer).of(plane))
