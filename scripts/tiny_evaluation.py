"""Measures a checkpoint: held-out loss, recall by distance and a sample of its writing.

Everything here runs the transformers model, so the figures belong to the files as shipped.
`write_model_card` puts them into the checkpoint's README.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recall_tasks import RecallTasks
from tiny_corpus import Corpus
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DISTANCES = (64, 128, 256, 512, 1024, 1536, 2000)
SAMPLE_PROMPTS = ("It was a bright cold day, and the old man", "In Python, a function is defined with")
EVALUATION_CONTEXT = 2048
PROBE_BATCH = 10
EVALUATION_WINDOWS = 50  # spread evenly over the held-out stream


@dataclass(frozen=True)
class Report:
    """What was measured; `recall` maps a task to its accuracy at each distance."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    recall_samples: int
    recall: dict[str, dict[int, float]]
    samples: dict[str, str]


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, corpus: Corpus, context: int, windows: int) -> float:
    """Mean loss per token over windows spread evenly over the held-out stream, each from a cold start."""
    starts = np.linspace(0, len(corpus.held_out) - context - 1, windows).astype(int)
    total = 0.0
    for start in starts:
        tokens = torch.tensor(corpus.held_out[start : start + context + 1].astype(np.int64))
        logits = model(input_ids=tokens[None, :-1], use_cache=False).logits[0]
        total += functional.cross_entropy(logits.float(), tokens[1:]).item()
    return total / windows


def answers_match(model: LlamaForCausalLM, prompts: Tensor, answers: Tensor) -> Tensor:
    """Which answers greedy decoding would give in full, found in one pass over prompt and answer."""
    tokens = torch.cat((prompts, answers), dim=1)
    logits = model(input_ids=tokens[:, :-1], use_cache=False, logits_to_keep=answers.size(1)).logits
    matches: Tensor = (logits.argmax(-1) == answers).all(dim=1)
    return matches


@torch.inference_mode()
def recall_accuracy(model: LlamaForCausalLM, tasks: RecallTasks, kind: str, distance: int, samples: int) -> float:
    """The fraction of probes answered exactly, every token right; the probes are the same every time."""
    generator = np.random.default_rng([samples, distance])
    probes = [tasks.probe(kind, distance, generator) for _ in range(samples)]
    prompts = torch.tensor([probe.prompt for probe in probes])
    answers = torch.tensor([probe.answer for probe in probes])
    batches = zip(prompts.split(PROBE_BATCH), answers.split(PROBE_BATCH), strict=True)
    return sum(int(answers_match(model, *batch).sum()) for batch in batches) / samples


def recall_table(
    model: LlamaForCausalLM, tasks: RecallTasks, samples: int, distances: tuple[int, ...] = DISTANCES
) -> dict[str, dict[int, float]]:
    """Accuracy of every task at every distance."""
    return {
        kind: {distance: recall_accuracy(model, tasks, kind, distance, samples) for distance in distances}
        for kind in tasks.makers
    }


@torch.inference_mode()
def sample_text(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, length: int = 100) -> str:
    """A continuation drawn at temperature 0.7 from a fixed seed."""
    torch.manual_seed(0)
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]])
    writer: Any = model
    output = writer.generate(tokens, max_new_tokens=length, do_sample=True, temperature=0.7, top_p=0.95)
    return str(tokenizer.decode(output[0, 1:], skip_special_tokens=True))


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, tasks: RecallTasks, samples: int
) -> Report:
    """All figures of the model card."""
    loss = held_out_loss(model, corpus, EVALUATION_CONTEXT, EVALUATION_WINDOWS)
    bits = loss * len(corpus.held_out) / corpus.held_out_bytes / math.log(2)
    texts = {prompt: sample_text(model, tokenizer, prompt) for prompt in SAMPLE_PROMPTS}
    recall = recall_table(model, tasks, samples)
    return Report(loss, math.exp(loss), bits, EVALUATION_WINDOWS * EVALUATION_CONTEXT, samples, recall, texts)


def recall_markdown(recall: dict[str, dict[int, float]]) -> str:
    """Accuracy as a table with one column per distance."""
    distances = list(next(iter(recall.values())))
    lines = ["| task | " + " | ".join(str(distance) for distance in distances) + " |"]
    lines.append("| --- |" + " ---: |" * len(distances))
    for kind, row in recall.items():
        lines.append(f"| {kind} | " + " | ".join(f"{accuracy:.0%}" for accuracy in row.values()) + " |")
    return "\n".join(lines)


def report_markdown(report: Report) -> str:
    """The measured part of the model card; also what `--evaluate` prints."""
    samples = "\n\n".join(f"> {text}".replace("\n", "\n> ") for text in report.samples.values())
    return f"""## Measured

Held-out text: {report.tokens:,} tokens in windows of {EVALUATION_CONTEXT:,}, each from a cold start.

| loss (nats per token) | perplexity per token | bits per byte |
| ---: | ---: | ---: |
| {report.loss:.4f} | {report.perplexity:.2f} | {report.bits_per_byte:.4f} |

Recall: the share of {report.recall_samples} probes answered exactly, every token right under greedy decoding, by
the distance in tokens between the answer's first statement and the place where it is due. A pass key is 5 digits;
a key-value answer is one word among up to 8 pairs; a copy is 8 random words. Text around the probes is held out.

{recall_markdown(report.recall)}

Samples at temperature 0.7, top-p 0.95, not chosen among several:

{samples}
"""


def attributions(directory: Path) -> str:
    """The source and licence table of the training text, from the data folder's README."""
    lines = (directory.parent.parent / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.replace("| text/train/", "| ") for line in lines if line.startswith("| text/train/")]
    return "\n".join(["| file | bytes | source at commit | licence |", "| --- | ---: | --- | --- |", *rows])


def write_model_card(folder: Path, description: str, report: Report, directory: Path) -> None:
    """README.md with the figures and the attributions, and the same figures as report.json."""
    data = f"""## Data and licences

Trained on the files below and on generated recall tasks. Keep this table wherever the weights are shipped.

{attributions(directory)}
"""
    (folder / "README.md").write_text("\n".join([description, report_markdown(report), data]), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
