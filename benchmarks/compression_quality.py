"""What is lost of long prompts by each policy and budget, beside pages of fewer bits: how answers and texts go on.

    python benchmarks/compression_quality.py
    python benchmarks/compression_quality.py --model FOLDER --tasks needle keys variables --tokens 2048

Right answers and texts are forced upon the engine, which is asked at each of their tokens how likely it was: that gives
perplexity, the divergence from the whole cache (bf16, nats, mean and 99th percentile), how often the most likely token
is the same, and how many answers would have been given in full. Questions are known when a prompt is compressed or,
with --unseen, come after it. No policy is told of where the whole cache answers less than --least of the questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pagoda import SamplingParams
from pagoda.cache.reading import LEAST_PAGES
from pagoda.config import EngineConfig, Environment
from pagoda.engine.engine import Engine
from pagoda.engine.format_fit import calibration_text
from pagoda.engine.repeating import read_repeat_prompt
from pagoda.engine.request import new_request
from pagoda.kernels.dispatch import choose_kernels
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model
from pagoda.models.model import Model
from pagoda.models.tokenizer import load_tokenizer

sys.path += [str(Path(__file__).parent / "peers")]

from answers import Case, Result, compared, write_cases

from forced import Forced
from long_prompts import RECALL, TASKS, TEXTS, cases_of

PAGE_TOKENS = 16
READS_LESS = "quest"  # keeps everything, and so is beside policies and not one of them


def forced(engine: Engine, cases: list[Case], policy: str, unseen: bool) -> list[torch.Tensor]:
    """Log-probabilities [answer tokens, vocabulary] of every case. Of what is read in part no question is `unseen`."""
    forms = [Forced(case.answer, lambda logits, _: logits.log_softmax(dim=-1)) for case in cases]
    for number, (case, form) in enumerate(zip(cases, forms, strict=True)):
        params = SamplingParams(
            temperature=0, max_tokens=len(case.answer), ignore_eos=True, **asked(case, policy, unseen)
        )
        request = new_request(str(number), case.prompt, params)
        request.constraint = form
        engine.add(request)
    while engine.has_work:
        engine.step()
    return [torch.stack(form.notes) for form in forms]


def asked(case: Case, policy: str, unseen: bool) -> dict[str, str]:
    """What is kept of a case, or read; a share of the prompt is so many tokens where it is read."""
    name, _, parameters = policy.partition(":share=")
    if name == READS_LESS:
        share, *rest = parameters.split(",")
        tokens = max(round(float(share) * len(case.prompt)), LEAST_PAGES * PAGE_TOKENS)
        return {"kv_compression": "none", "sparse_attention": ",".join((f"{name}:tokens={tokens}", *rest))}
    after = f",after={len(case.prompt) - case.num_question}" if unseen and policy != "none" else ""
    return {"kv_compression": policy + after, "sparse_attention": "none"}


def make_engine(model: Model, format: str, tokenizer: Any) -> Engine:
    config = EngineConfig(
        kv_cache_dtype=format,
        kv_cache_memory_bytes=1 << 30,
        block_size=PAGE_TOKENS,
        sparse_attention=f"{READS_LESS}:tokens={LEAST_PAGES * PAGE_TOKENS}",  # of whoever asks for it
    )
    calibration = partial(calibration_text, "auto", tokenizer, model.vocab_size)
    words = read_repeat_prompt(tokenizer, model.vocab_size)
    return Engine(model, choose_kernels(Environment.read()), config, calibration=calibration, repeat_prompt=words)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, str, Result]]:
    """Task, way and result, as they come."""
    folder = options.model or EMBEDDED_MODEL
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype="bfloat16")
    engines = {format: make_engine(model, format, tokenizer) for format in ("bf16", *options.formats)}
    bytes_of = {format: engine.memory.geometries[0].page_nbytes for format, engine in engines.items()}
    for task in options.tasks:
        cases = cases_of(task, tokenizer, options)
        whole = forced(engines["bf16"], cases, "none", unseen=False)
        result = compared(cases, whole, whole, 1.0)
        yield task, "all, bf16", result
        if task not in TEXTS and result.answered < options.least:
            continue
        for format in options.formats:
            found = forced(engines[format], cases, "none", unseen=False)
            yield task, f"all, {format}", compared(cases, found, whole, bytes_of[format] / bytes_of["bf16"])
        for policy in options.policies:
            for share in options.shares:
                name, _, parameters = policy.partition(":")
                text = f"{name}:share={share}" + (f",{parameters}" if parameters else "")
                found = forced(engines["bf16"], cases, text, options.unseen)
                yield task, text, compared(cases, found, whole, share)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Divergence over the bytes that are kept, for each task: a line for each policy, one for formats of pages."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    names = dict.fromkeys(_line_of(row["way"]) for row in rows)
    colours = dict(zip(names, colormaps["tab20"].colors, strict=False))
    figure = Figure(figsize=(5 * len(tasks) + 3, 4.5), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["task"] == task and row["divergence"] > 0:
                lines.setdefault(_line_of(row["way"]), []).append((100 * row["kept"], row["divergence"]))
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", color=colours[name], label=name)
        axes.set(title=task, xlabel="bytes kept, %", ylabel="divergence from the whole cache, nats", yscale="log")
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=handles.values(), fontsize="small", loc="outside center right")
    figure.savefig(path, dpi=100)


def _line_of(way: str) -> str:
    """The policy without its budget."""
    if way.startswith("all, "):
        return "pages in int8 and int4"
    name, _, parameters = way.partition(":")
    rest = [each for each in parameters.split(",") if not each.startswith(("share=", "window=", "every="))]
    return ", ".join([name, *rest])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="folder of a checkpoint; the embedded model if none is given")
    add("--data", type=Path, default=Path("../shared/data/text/train"), help="folder of the training text")
    add("--work", type=Path, default=Path("build/tiny"), help="folder that keeps the text as tokens")
    add("--tasks", nargs="+", choices=TASKS, default=["text", *RECALL])
    add("--tokens", type=int, default=1024, help="of the prompts")
    add("--cases", type=int, default=16, help="questions of each task")
    add(
        "--policies",
        nargs="+",
        default=[
            "snapkv:window=32",
            "snapkv:window=32,critical=0.5",
            "snapkv:window=32,head_floor=0.2",
            "snapkv:window=32,critical=0.5,head_floor=0.2",
            "pyramidkv:window=32",
            "pyramidkv:window=32,head_floor=0.2",
            "tova:every=0",
            "h2o:every=0",
            "expected_attention",
            "kvzip",
            "kvzip:head_floor=0.2",
            "knorm",
            "streaming",
            "random",
            "quest:dense_layers=0",
        ],
    )
    add("--shares", nargs="+", type=float, default=[0.75, 0.5, 0.25, 0.12])
    add("--formats", nargs="*", default=["int8", "int4"])
    add("--unseen", action="store_true", help="compress before the question")
    add("--least", type=float, default=0.8, help="share of questions that the whole cache must answer")
    add("--json", type=Path, help="write the figures here too")
    add("--write-cases", type=Path, help="write the prompts and answers here, for peers/kvpress_quality.py")
    add("--plot", type=Path, help="draw divergence over bytes here")
    add("--read", type=Path, help="measure nothing: draw what --json has written")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.read:
        plot(json.loads(options.read.read_text()), options.plot)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if options.write_cases:
        tokenizer = load_tokenizer(options.model or EMBEDDED_MODEL)
        write_cases(options.write_cases, {task: cases_of(task, tokenizer, options) for task in options.tasks})
    table, rows = Table(title=f"{options.cases} prompts of each task, {options.tokens} tokens"), []
    for column in ("task", "kept", "bytes", "perplexity", "divergence", "its 99 %", "same top", "answered"):
        table.add_column(column, justify="left" if column in ("task", "kept") else "right")
    for task, way, result in measure(options):
        rows.append({"task": task, "way": way, **vars(result)})
        table.add_row(
            *(task, way, f"{result.kept:.0%}", f"{result.perplexity:.3f}", f"{result.divergence:.4f}"),
            *(f"{result.divergence_99:.3f}", f"{result.same_top:.1%}", f"{result.answered:.0%}"),
        )
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
