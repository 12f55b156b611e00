"""What a page format costs in quality: perplexity on held-out text and recall at a distance, embedded model.

Every format reads the same windows and probes, each computed as one prompt through its pages; the figures stand beside
those of bf16 pages. Text: the slice of the training sources that no model was trained on.

The embedded model has no channels whose keys are far larger than others', as some large models have; --outliers makes
some. `pagoda bench quality` measures any model, without the embedded one's own questions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pagoda.config import Environment
from pagoda.engine.format_fit import Trial, calibration_text
from pagoda.engine.key_constants import constants_for
from pagoda.formats.page import page_geometries
from pagoda.kernels.base import Kernels
from pagoda.kernels.dispatch import choose_kernels
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model
from pagoda.models.model import Model
from pagoda.models.passage import Passage
from pagoda.models.tokenizer import load_tokenizer
from pagoda.registry import lookup, names

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import tiny_evaluation as evaluation
from recall_tasks import RecallTasks
from tiny_corpus import load_corpus
from train_tiny import load_words

PAGE_TOKENS = 32
LONGEST = 2112
# Of every head; each comes with the one that positions turn it into.
OUTLIER_CHANNELS = (7, 21)


@dataclass(frozen=True)
class PagedNetwork:
    """A model that is called as transformers' are and keeps its cache in pages of one format."""

    passage: Passage

    @classmethod
    def make(cls, model: Model, kernels: Kernels, format_name: str, trial: Trial | None) -> PagedNetwork:
        geometries = page_geometries(model.spec, lookup("format", format_name), PAGE_TOKENS)
        constants = {} if trial is None else constants_for(geometries, trial.statistics, LONGEST)
        return cls(Passage(model, kernels, geometries, LONGEST, constants))

    def __call__(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int = 0) -> Any:
        """Logits [batch, kept rows, vocabulary] of `input_ids` [batch, tokens], row by row."""
        assert not use_cache
        length = input_ids.shape[1]
        rows = torch.arange(length - logits_to_keep if logits_to_keep else 0, length)
        return SimpleNamespace(logits=torch.stack([self.passage.logits(tokens, rows) for tokens in input_ids]))


def add_outliers(model: Model, factor: float) -> None:
    """Multiply some channels of keys by `factor`, a power of two, and divide the queries' by it: scores stay."""
    for layer in model.network.model.layers:
        attention = layer.self_attn
        for projection, scale in ((attention.k_proj, factor), (attention.q_proj, 1 / factor)):
            heads = projection.weight.data.unflatten(0, (-1, 2, attention.head_dim // 2))
            heads[:, :, OUTLIER_CHANNELS] *= scale


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Perplexity and recall of every format."""
    tokenizer = load_tokenizer(EMBEDDED_MODEL)
    options.work.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(options.work, options.data, tokenizer)
    tasks = RecallTasks(tokenizer, corpus.held_out, load_words(corpus, tokenizer))
    model = load_model(EMBEDDED_MODEL, dtype="auto")
    add_outliers(model, options.outliers)
    kernels = choose_kernels(Environment())
    text = calibration_text(options.calibration, tokenizer, model.vocab_size)
    trial = Trial.of(model, kernels, text.token_ids)
    results = {}
    for format_name in options.formats:
        network: Any = PagedNetwork.make(model, kernels, format_name, trial)
        loss = evaluation.held_out_loss(network, corpus, evaluation.EVALUATION_CONTEXT, options.windows)
        recall = evaluation.recall_table(network, tasks, options.probes, tuple(options.distances))
        results[format_name] = {"loss": loss, "perplexity": math.exp(loss), "recall": recall}
    return results


def print_table(results: dict[str, Any], options: argparse.Namespace, console: Console) -> None:
    base = results[options.formats[0]]
    table = Table(title=f"{options.windows} windows of {evaluation.EVALUATION_CONTEXT} tokens, {options.probes} probes")
    for column in (
        "pages",
        "perplexity",
        "change",
        *(f"{kind} at {d}" for kind in base["recall"] for d in options.distances),
    ):
        table.add_column(column, justify="right")
    for name, result in results.items():
        change = f"{result['perplexity'] / base['perplexity'] - 1:+.3%}"
        recall = (f"{value:.0%}" for row in result["recall"].values() for value in row.values())
        table.add_row(name, f"{result['perplexity']:.3f}", change, *recall)
    console.print(table)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data/text/train"), help="folder of the training text")
    coded = [name for name in names("format") if name not in ("fp32", "fp16", "bf16")]
    add("--work", type=Path, default=Path("build/tiny"), help="folder that keeps the text as tokens")
    add("--formats", nargs="+", default=["bf16", *coded], choices=names("format"), help="the first is compared with")
    add("--windows", type=int, default=50, help="stretches of held-out text")
    add("--probes", type=int, default=50, help="questions of each kind and distance")
    add("--distances", nargs="+", type=int, default=[256, 512, 1024], help="tokens between statement and answer")
    add(
        "--outliers", type=float, default=1, metavar="FACTOR", help="a power of two: make these channels so much larger"
    )
    add("--calibration", default="auto", metavar="SOURCE", help="auto, none or a file")
    add("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    results = measure(options)
    print_table(results, options, Console(width=160))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
