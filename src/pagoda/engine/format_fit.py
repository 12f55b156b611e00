"""The format of the pages fitted to a model when it is loaded, and what it then costs.

A text is run through the model. From most of it constants of keys are measured; the rest tells how far the predictions
over pages of this format lie from those over pages of the model's own precision.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, Self

import torch

from pagoda.engine.fit_store import FitStore, Measured, key_of
from pagoda.engine.key_constants import Constants, constants_for, digest_of
from pagoda.errors import ConfigError, RequestError
from pagoda.formats.page import PageGeometry, page_geometries
from pagoda.formats.plain import own_format
from pagoda.kernels.base import Kernels
from pagoda.layouts.spec import SiteSlot
from pagoda.models.calibration import KeyStatistics, measure
from pagoda.models.model import Model
from pagoda.models.passage import Passage, can_run
from pagoda.planning.memory import MemoryPlan
from pagoda.registry import lookup
from pagoda.tokenizing import encode

logger = logging.getLogger(__name__)

TEXT = Path(__file__).parent.parent / "assets" / "calibration.txt"
# Tokens of the text that are used, and the share of them that is kept back for the check.
MOST_TOKENS = 1280
FEWEST_TOKENS = 80
CHECKED_SHARE = 0.2
PAGE_TOKENS = 32
# Predictions that are compared: as many as have so many logits together.
MOST_LOGITS = 1 << 24
# Beyond this loss another format is recommended: the first of these that loses less.
MOST_LOSS = 0.02
SAFER = ("k8v4", "int8", "fp8_e4m3")


@dataclass(frozen=True)
class CalibrationText:
    """Token ids to run through a model; they say what a format costs only if a tokenizer read them from a text."""

    token_ids: list[int] = field(default_factory=list)
    is_read: bool = True


@dataclass(frozen=True)
class FormatFit:
    """Constants of keys, and the `loss`: how much larger perplexity should be than over exact pages.

    0.01 is one percent. It is expected by the exact predictions themselves, which say how likely each token is: exp(KL
    divergence) - 1, which varies far less than the difference over the few tokens that follow. None if not measured.
    """

    constants: Constants = field(default_factory=dict)
    loss: float | None = None

    @property
    def digest(self) -> str | None:
        """Tells pages kept with other constants."""
        return digest_of(self.constants)


def calibration_text(source: str, tokenizer: Any, vocab_size: int) -> CalibrationText:
    """The text that `source` names: "auto", "none" or a file. Any ids, if there is no tokenizer.

    Raises ConfigError for a file that is too short or cannot be read, by us or by the tokenizer.
    """
    if source == "none":
        return CalibrationText()
    if tokenizer is None:
        generator = random.Random(0)
        return CalibrationText([generator.randrange(vocab_size) for _ in range(MOST_TOKENS)], is_read=False)
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
    return CalibrationText(known)


def fit_format(
    model: Model, kernels: Kernels, memory: MemoryPlan, read_text: Callable[[], CalibrationText], store: FitStore
) -> FormatFit:
    """Fit the formats of `memory`; `read_text` gives what to run through the model, if need be."""
    if not _has_codes(memory.geometries):
        return FormatFit()
    begin = monotonic()
    text = read_text()
    trial = Trial.of(model, kernels, text.token_ids, store)
    if trial is None:
        return FormatFit()
    loss = trial.loss(memory.geometries) if text.is_read else None
    logger.info("Fitted the format of pages to the model in %.1f s.", monotonic() - begin)
    _tell(trial, memory.geometries, loss)
    return FormatFit(constants_for(memory.geometries, trial.statistics, memory.max_model_len), loss)


class Trial:
    """A text run through a model: what its keys have in common, and what predictions over pages of codes lose.

    What is in `store` is not computed again.
    """

    @classmethod
    def of(cls, model: Model, kernels: Kernels, token_ids: list[int], store: FitStore | None = None) -> Self | None:
        """None for a text that is too short, or a model that a text alone does not run."""
        limit = MOST_TOKENS if model.most_model_len is None else min(MOST_TOKENS, model.most_model_len)
        if min(limit, len(token_ids)) < FEWEST_TOKENS or not can_run(model):
            return None
        return cls(model, kernels, torch.tensor(token_ids[:limit]), store or FitStore(None))

    def __init__(self, model: Model, kernels: Kernels, token_ids: torch.Tensor, store: FitStore) -> None:
        self.model, self._kernels, self._token_ids, self._store = model, kernels, token_ids, store
        checked = int(len(token_ids) * CHECKED_SHARE)
        stride = max(1, -(-checked * model.vocab_size // MOST_LOGITS))
        self._rows = torch.arange(len(token_ids) - checked, len(token_ids), stride)
        self._key = key_of(model, token_ids)
        measured = store.read(self._key)
        if measured is None:
            measured = Measured(measure(model, kernels, token_ids[: len(token_ids) - checked]))
            store.write(self._key, measured)
        self._measured = measured

    @property
    def statistics(self) -> dict[SiteSlot, KeyStatistics]:
        """Of the keys of every layer that could be measured."""
        return self._measured.statistics

    def loss(self, geometries: tuple[PageGeometry, ...]) -> float | None:
        """Of pages in these formats; None if predictions are not all finite."""
        constants = constants_for(geometries, self.statistics, len(self._token_ids))
        name = f"{_format_names(geometries)} {digest_of(constants)}"
        if name not in self._measured.losses:
            divergence = float(divergences(self._exact, self._predictions(geometries, constants)).mean())
            if not math.isfinite(divergence):
                return None
            self._measured.losses[name] = math.expm1(divergence)
            self._store.write(self._key, self._measured)
        return self._measured.losses[name]

    def loss_in(self, name: str) -> float | None:
        """Of pages all in the format `name`; None if they cannot keep this model."""
        try:
            return self.loss(page_geometries(self.model.spec, lookup("format", name), PAGE_TOKENS))
        except ConfigError:
            return None

    @cached_property
    def _exact(self) -> torch.Tensor:
        return self._predictions(page_geometries(self.model.spec, own_format(self.model.dtype), PAGE_TOKENS), {})

    def _predictions(self, geometries: tuple[PageGeometry, ...], constants: Constants) -> torch.Tensor:
        passage = Passage(self.model, self._kernels, geometries, len(self._token_ids), constants)
        return passage.logits(self._token_ids, self._rows)


def divergences(exact: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Kullback and Leibler's, of predictions from exact ones, in nats: [rows] of logits [rows, vocabulary]."""
    # A row at a time: they are long.
    return torch.stack([_divergence(*pair) for pair in zip(exact, others, strict=True)])


def _divergence(exact: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    expected = exact.log_softmax(dim=-1)
    # Tokens that cannot be drawn have minus infinity, and no weight.
    terms = torch.where(expected.isneginf(), 0.0, expected.exp() * (expected - other.log_softmax(dim=-1)))
    return terms.sum(dim=-1).clamp(min=0)


def _format_names(geometries: tuple[PageGeometry, ...]) -> str:
    return "; ".join(
        f"{geometry.format.name} {[(layer, other.name) for layer, other in geometry.others]}" for geometry in geometries
    )


def _has_codes(geometries: tuple[PageGeometry, ...]) -> bool:
    return any(
        geometry.format_of(layer).of(plane).has_codes
        for geometry in geometries
        for layer, layout in enumerate(geometry.group.layouts)
        for plane in layout.planes
    )


def _tell(trial: Trial, geometries: tuple[PageGeometry, ...], loss: float | None) -> None:
    if loss is None:
        return
    names = ", ".join(sorted({geometry.format_name for geometry in geometries}))
    logger.info("Pages in %s should cost this model %.1f %% of perplexity on the calibration text.", names, 100 * loss)
    if loss <= MOST_LOSS:
        return
    losses = ((name, trial.loss_in(name)) for name in SAFER)
    better = next(((name, each) for name, each in losses if each is not None and each <= MOST_LOSS), None)
    advice = "auto, which loses nothing" if better is None else f"{better[0]} ({100 * better[1]:.1f} %)"
    logger.warning(
        "Pages in %s should cost this model %.1f %% of perplexity on the calibration text; choose kv_cache_dtype=%s.",
        names,
        100 * loss,
        advice,
    )
