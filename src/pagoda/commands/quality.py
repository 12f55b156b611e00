"""`pagoda bench quality`: what formats of pages cost a model in quality, and what they save.

Perplexity, divergence from exact pages and recall are measured with the model's own text windows; bytes of a token are
counted, decode speed is measured. Formats are compared with pages in the precision of the weights.
"""

from __future__ import annotations

import inspect
import json
import logging
import statistics
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pagoda import machine
from pagoda.commands.comparison import Probes, TextResult, compare_window
from pagoda.commands.drawing import pyplot, save
from pagoda.config import Environment, engine_config
from pagoda.engine.fit_store import FitStore
from pagoda.engine.format_fit import Trial, calibration_text
from pagoda.engine.key_constants import constants_for
from pagoda.errors import ConfigError
from pagoda.formats.page import PageGeometry
from pagoda.kernels.dispatch import choose_kernels
from pagoda.llm import EMBEDDED_MODEL, LLM
from pagoda.models.loader import load_model
from pagoda.models.passage import Passage, can_run
from pagoda.models.tokenizer import load_tokenizer
from pagoda.planning.page_formats import choose_geometries
from pagoda.sampling_params import SamplingParams

Item = TypeVar("Item")

NOT_FITTED = ":none"
DECODED_TOKENS = 32
# Of the standard library: what there is to read on every machine, and no model was fitted to here.
SOURCES = ("argparse", "asyncio.base_events", "tarfile", "typing", "turtle")


@dataclass
class FormatResult:
    """Everything about one format."""

    name: str
    nbytes_per_token: float
    expected_loss: float | None  # by what is measured at load
    texts: dict[str, TextResult] = field(default_factory=dict)
    recall: dict[str, dict[int, float]] = field(default_factory=dict)  # share of tokens, by kind and distance
    decode_rates: list[float] = field(default_factory=list)  # tokens a second, a sequence alone

    def as_json(self) -> dict[str, Any]:
        return {
            "format": self.name,
            "bytes_per_token": self.nbytes_per_token,
            "expected_loss": self.expected_loss,
            "texts": {
                name: {
                    "perplexity": each.perplexity,
                    "change": each.change,
                    "standard_error": each.error,
                    "kl_mean": each.mean_divergence,
                    "kl_p99": each.p99_divergence,
                    "top1_agreement": each.agreement,
                }
                for name, each in self.texts.items()
            },
            "recall": self.recall,
            "decode_tokens_per_second": self.decode_rates,
        }


def run(arguments: Namespace) -> int:
    bench = Bench(arguments)
    console = Console()
    results = bench.measure(console)
    for table in tables(results):
        console.print(table)
    if arguments.json is not None:
        setting = {"model": str(bench.path), "processor": machine.cpu_name(), "formats": [e.as_json() for e in results]}
        _write(arguments.json, json.dumps(setting, indent=2) + "\n")
    if arguments.plot is not None:
        draw(results, arguments.plot)
    return 0


class Bench:
    """The model, the texts and the formats of one run."""

    def __init__(self, arguments: Namespace) -> None:
        self._arguments = arguments
        if arguments.plot is not None:
            pyplot()  # an error that is better told now
        self.path = EMBEDDED_MODEL if arguments.model is None else arguments.model
        self.model = load_model(self.path, dtype=arguments.dtype)
        if not can_run(self.model):
            raise ConfigError("bench quality is for decoders that attend; this model has an encoder, or no attention.")
        self.tokenizer_path = arguments.tokenizer or self.path
        self.tokenizer: Any = load_tokenizer(self.tokenizer_path)
        if self.tokenizer is None:
            raise ConfigError(f"There is no tokenizer in {self.tokenizer_path}; give one with --tokenizer.")
        self.kernels = choose_kernels(Environment.read())
        self._tokens: int = arguments.window_tokens
        self._position: int = arguments.position
        self._check()
        self.model.fix_length(None)
        self.texts = {name: self._windows(name, text) for name, text in _texts(arguments.texts)}
        self.filler = torch.cat([window for windows in self.texts.values() for window in windows])
        if max(arguments.distances, default=0) >= len(self.filler):
            raise ConfigError(
                f"--distances has {max(arguments.distances)} and the texts {len(self.filler)} tokens to put between; "
                "lower it, or give more windows."
            )
        self._formats = [self._geometries(name) for name in arguments.formats]

    def measure(self, console: Console) -> list[FormatResult]:
        calibration = calibration_text("auto", self.tokenizer, self.model.vocab_size).token_ids
        trial = Trial.of(self.model, self.kernels, calibration, FitStore(Environment.read().cache_folder))
        passages, results = [], []
        for name, geometries in zip(self._arguments.formats, self._formats, strict=True):
            is_fitted = trial is not None and not name.endswith(NOT_FITTED)
            constants = constants_for(geometries, trial.statistics, self._end) if trial and is_fitted else {}
            passages.append(Passage(self.model, self.kernels, geometries, self._longest, constants, self._position))
            loss = trial.loss(geometries) if trial and is_fitted else None
            results.append(FormatResult(name, sum(each.nbytes_per_token for each in geometries), loss))
        exact = Passage(self.model, self.kernels, self._geometries("auto"), self._longest, position=self._position)
        self._read_texts(exact, passages, results, console)
        self._recall(passages, results, console)
        if not self._arguments.skip_speed:
            with _untold("pagoda.engine"):  # what it warns of is in the tables
                self._decode(results)
        return results

    @property
    def _longest(self) -> int:
        return max(self._tokens, *(int(distance) + 256 for distance in self._arguments.distances), 1)

    @property
    def _end(self) -> int:
        """Where the last token stands."""
        return self._position + self._longest

    def _check(self) -> None:
        most, arguments = self.model.most_model_len, self._arguments
        if self._tokens < 64 or min(arguments.windows, arguments.probes, arguments.repeats) < 1:
            raise ConfigError("Give at least one window of 64 tokens, one probe and one repeat.")
        if min(arguments.distances, default=0) < 0:
            raise ConfigError(f"--distances has {min(arguments.distances)}; give numbers of tokens.")
        if self._position < 0 or self._position % 32:
            raise ConfigError(f"--position is {self._position}; give a multiple of 32.")
        if most is not None and self._end > most:
            raise ConfigError(
                f"The last token would be number {self._end} and the model takes {most}; lower --position, "
                "--window-tokens or --distances."
            )

    def _windows(self, name: str, text: str) -> list[torch.Tensor]:
        token_ids = torch.tensor(
            self.tokenizer(text, verbose=False).input_ids[: self._arguments.windows * self._tokens]
        )
        windows = [each for each in token_ids.split(self._tokens) if len(each) == self._tokens]
        if not windows:
            raise ConfigError(f"{name} has {len(token_ids)} tokens and a window {self._tokens}; give a longer text.")
        return windows

    def _geometries(self, name: str) -> tuple[PageGeometry, ...]:
        return choose_geometries(self.model.facts, engine_config(kv_cache_dtype=name.removesuffix(NOT_FITTED)))

    def _read_texts(
        self, exact: Passage, passages: list[Passage], results: list[FormatResult], console: Console
    ) -> None:
        for text, windows in self.texts.items():
            for window in _shown(windows, text, console):
                found, loss = compare_window(exact, passages, window, self.model.vocab_size)
                for result, each in zip(results, found, strict=True):
                    of_text = result.texts.setdefault(text, TextResult())
                    of_text.windows.append(each)
                    of_text.exact.append(loss)

    def _recall(self, passages: list[Passage], results: list[FormatResult], console: Console) -> None:
        probes = Probes(self.tokenizer, self.filler)
        for kind in Probes.KINDS:
            for distance in self._arguments.distances:
                made = list(probes.make(kind, distance, self._arguments.probes))
                for passage, result in zip(passages, results, strict=True):
                    told = _shown(made, f"{kind} {distance}", console)
                    shares = result.recall.setdefault(kind, {})
                    shares[distance] = statistics.mean(probe.foreseen(passage) for probe in told)

    def _decode(self, results: list[FormatResult]) -> None:
        """A sequence alone, whose prompt is a window; formats by turns, so that noise meets all."""
        prompt = next(iter(self.texts.values()))[0].tolist()
        params = SamplingParams(temperature=0, max_tokens=DECODED_TOKENS, ignore_eos=True)
        room = len(prompt) + 2 * DECODED_TOKENS
        for _ in range(self._arguments.repeats):
            for result in results:
                name = result.name.removesuffix(NOT_FITTED)
                budget = int(result.nbytes_per_token * (room + 256)) * 2 + (1 << 20)
                with LLM(
                    self.model,
                    tokenizer=self.tokenizer_path,
                    kv_cache_dtype=name,
                    kv_cache_calibration="auto" if name == result.name else "none",
                    kv_cache_memory_bytes=budget,
                    max_model_len=room,
                ) as llm:
                    gaps = llm.generate([prompt], params, use_tqdm=False)[0].metrics.inter_token_seconds
                    result.decode_rates.append(len(gaps) / sum(gaps))
        self.model.fix_length(None)


def tables(results: list[FormatResult]) -> Iterator[Table]:
    """One of each text, one of recall, one of the rest."""
    for text in results[0].texts:
        rows: list[tuple[str, ...]] = [
            ("pages", "perplexity", "change", "+-", "KL mean", "KL p99", "same first choice")
        ]
        for result in results:
            each = result.texts[text]
            error = "" if each.error is None else f"{each.error:.2%}"
            divergence = (f"{each.mean_divergence:.4f}", f"{each.p99_divergence:.3f}")
            rows.append(
                (
                    result.name,
                    f"{each.perplexity:.3f}",
                    f"{each.change:+.2%}",
                    error,
                    *divergence,
                    f"{each.agreement:.1%}",
                )
            )
        yield _table(text, rows)
    if results[0].recall:
        yield _table("share of tokens recalled", _recall_rows(results))
    others: list[tuple[str, ...]] = [("pages", "bytes of a token", "loss expected at load", "tokens/s alone")]
    for result in results:
        loss = "" if result.expected_loss is None else f"{result.expected_loss:.2%}"
        rate = f"{statistics.median(result.decode_rates):.1f}" if result.decode_rates else ""
        others.append((result.name, f"{result.nbytes_per_token:,.0f}", loss, rate))
    yield _table("memory and speed", others)


@contextmanager
def _untold(name: str) -> Iterator[None]:
    """Without the warnings of a logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _recall_rows(results: list[FormatResult]) -> list[tuple[str, ...]]:
    kinds = [(kind, distance) for kind, shares in results[0].recall.items() for distance in shares]
    heading = ("pages", *(f"{kind} at {distance:,}" for kind, distance in kinds))
    return [heading, *((each.name, *(f"{each.recall[kind][at]:.0%}" for kind, at in kinds)) for each in results)]


def _table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 3, 0, 0))
    for column, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if column else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _shown(items: list[Item], what: str, console: Console) -> Iterable[Item]:
    """With a bar on a terminal."""
    return track(items, description=what, console=console, transient=True, disable=not console.is_terminal)


def draw(results: list[FormatResult], file: Path) -> None:
    """Loss over bytes, a point for each format and text."""
    figure, axes = pyplot().subplots(figsize=(8, 5))
    ordered = sorted(results, key=lambda result: result.nbytes_per_token)
    for text in results[0].texts:
        losses = [100 * result.texts[text].change for result in ordered]
        errors = [100 * (result.texts[text].error or 0.0) for result in ordered]
        sizes = [result.nbytes_per_token / 1024 for result in ordered]
        axes.errorbar(sizes, losses, yerr=errors, fmt="o", capsize=3, label=text)
    for result in ordered:
        highest = max(100 * each.change for each in result.texts.values())
        place = (result.nbytes_per_token / 1024, highest)
        axes.annotate(result.name, place, xytext=(4, 6), textcoords="offset points", fontsize=8)
    axes.margins(x=0.12, y=0.12)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("KiB of a token in pages")
    axes.set_ylabel("perplexity above exact pages, %")
    axes.legend()
    figure.tight_layout()
    save(figure, file)


def _texts(files: list[Path] | None) -> Iterator[tuple[str, str]]:
    """Names and texts: files, or documentation and sources of the standard library."""
    if files is None:
        from importlib import import_module
        from pydoc_data.topics import topics

        yield "prose", "\n\n".join(topics.values())
        yield "code", "".join(inspect.getsource(import_module(name)) for name in SOURCES)
        return
    for file in files:
        try:
            yield file.name, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read as text: {error}") from error


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error}") from error
