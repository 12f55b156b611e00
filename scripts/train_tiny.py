"""Trains the embedded model: a small Llama that writes English and recalls over 2,048 tokens.

Text is mixed with synthetic recall tasks (recall_tasks.py) while rows grow from 256 to 2,048
tokens. Matrices are optimised by Muon, the rest by AdamW. With --steps a run's batches depend on
its seed alone; with --minutes the schedule follows the clock instead. A checkpoint is kept as it
goes, so a run can be resumed, and the best so far exported, at any time. A GPU takes larger
batches, made by worker processes, and a curriculum that leaves the short rows sooner.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_evaluation as evaluation
import torch
from recall_tasks import RecallTasks, Row, common_words
from tiny_corpus import ASSISTANT, USER, Corpus, load_corpus, load_tokenizer
from tiny_model import Shape, TinyLlama, to_transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: from which share of the run, how long its rows are and what they hold."""

    begins: float
    length: int
    recall_share: float
    repeat_share: float


@dataclass(frozen=True)
class Settings:
    """Everything about a run but its length and its paths."""

    seed: int = 0
    batch_tokens: int = 4096
    stages: tuple[Stage, ...] = (
        Stage(0.0, 256, recall_share=0.2, repeat_share=0.4),
        Stage(0.25, 512, recall_share=0.45, repeat_share=0.1),
        Stage(0.6, 2048, recall_share=0.45, repeat_share=0.05),
    )
    chat_share: float = 0.07
    matrix_rate: float = 0.006
    other_rate: float = 0.004
    weight_decay: float = 0.05
    warm_up: float = 0.02
    decay_from: float = 0.5
    last_rate: float = 0.03
    gradient_norm: float = 1.0
    checkpoint_seconds: float = 120.0
    recall_samples: int = 50
    workers: int = 0


def settings_for(device: str, seed: int) -> Settings:
    """Those of two CPU cores, or of a GPU, which sees some hundred times as many tokens in the same time."""
    if device == "cpu":
        return Settings(seed=seed)
    return Settings(
        seed=seed,
        batch_tokens=65_536,
        stages=(
            Stage(0.0, 256, recall_share=0.2, repeat_share=0.4),
            Stage(0.03, 512, recall_share=0.4, repeat_share=0.1),
            Stage(0.15, 2048, recall_share=0.3, repeat_share=0.03),
        ),
        matrix_rate=0.008,
        weight_decay=0.1,
        decay_from=0.4,
        last_rate=0.01,
        workers=max(1, (os.cpu_count() or 2) - 2),
    )


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Training batches; the one of a given step depends on the seed, the step and its stage alone."""

    def __init__(self, settings: Settings, corpus: Corpus, tasks: RecallTasks, tokenizer: PreTrainedTokenizerFast):
        self.settings = settings
        self.stream = corpus.training
        self.tasks = tasks
        self.roles = [tokenizer.convert_tokens_to_ids(role) for role in (USER, ASSISTANT)]

    def text_row(self, generator: np.random.Generator, length: int) -> Row:
        """A stretch of the corpus, now and then as a chat whose answer continues the question."""
        start = generator.integers(len(self.stream) - length)
        tokens = self.stream[start : start + length].astype(np.int64)
        weights = np.ones(length, dtype=np.float32)
        if generator.random() < self.settings.chat_share:
            turn = int(generator.integers(4, length // 2))
            tokens = np.concatenate(([self.roles[0]], tokens[:turn], [self.roles[1]], tokens[turn:]))[:length]
            weights[turn + 1] = 0.0
        return tokens, weights

    def row(self, generator: np.random.Generator, stage: Stage) -> Row:
        draw, length = generator.random(), stage.length + 1
        if draw < stage.recall_share:
            return self.tasks.recall_row(generator, length)
        if draw < stage.recall_share + stage.repeat_share:
            return self.tasks.repeat_row(generator, length)
        return self.text_row(generator, length)

    def __getitem__(self, key: tuple[int, Stage]) -> tuple[Tensor, Tensor]:
        """Tokens and loss weights, one more of each per row than the model is fed."""
        step, stage = key
        generator = np.random.default_rng([self.settings.seed, step])
        rows = [self.row(generator, stage) for _ in range(self.settings.batch_tokens // stage.length)]
        tokens, weights = (np.stack(column) for column in zip(*rows, strict=True))
        return torch.from_numpy(tokens), torch.from_numpy(weights)


def stage_at(settings: Settings, progress: float) -> Stage:
    """The stage of the curriculum at this share of the run."""
    return [stage for stage in settings.stages if stage.begins <= progress][-1]


def rate_factor(settings: Settings, progress: float) -> float:
    """Linear warm-up, a plateau, then linear decay."""
    if progress < settings.warm_up:
        return (progress + 1e-3) / (settings.warm_up + 1e-3)
    remaining = (1 - progress) / (1 - settings.decay_from)
    return max(settings.last_rate, min(1.0, remaining))


def build_optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers; AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named if weight.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=settings.matrix_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return [muon, adam]


@dataclass
class Run:
    """A run's mutable state; `seconds` counts training time over all its resumptions."""

    model: TinyLlama
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        state = {"step": self.step, "seconds": self.seconds, "model": self.model.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.model.get_buffer("cosines").device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def take_step(run: Run, forward: Forward, settings: Settings, batch: tuple[Tensor, Tensor], factor: float) -> Tensor:
    """One update from one batch; returns its weighted mean loss."""
    tokens, weights = batch
    device = run.model.get_buffer("cosines").device
    tokens, weights = tokens.to(device, non_blocking=True), weights.to(device, non_blocking=True)
    inputs, targets, weights = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights[:, 1:].contiguous()
    loss = forward(inputs, targets, weights) / weights.sum()
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), settings.gradient_norm)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        optimizer.step()
        optimizer.zero_grad()
    run.step += 1
    return loss.detach()


@dataclass(frozen=True)
class Length:
    """How long a run is: in steps, or in minutes where their number is not given."""

    steps: int | None
    minutes: float

    def progress(self, step: int, seconds: float) -> float:
        """The share of the run that is done; it is over at 1."""
        return step / self.steps if self.steps is not None else seconds / max(60 * self.minutes, 1e-9)


def batch_keys(run: Run, settings: Settings, length: Length) -> Iterator[tuple[int, Stage]]:
    """The step and the stage of each batch to make; workers are a few batches ahead of the run."""
    step = run.step
    while (progress := length.progress(step, run.seconds)) < 1:
        yield step, stage_at(settings, progress)
        step += 1


def train(run: Run, settings: Settings, batches: Batches, length: Length, checkpoint: Path) -> None:
    """Step until the run's length is used up."""
    forward: Forward = torch.compile(run.model, dynamic=False)
    began = time.monotonic() - run.seconds
    saved_at = time.monotonic()
    average: Tensor | None = None
    keys = batch_keys(run, settings, length)
    for batch in DataLoader(batches, sampler=keys, batch_size=None, num_workers=settings.workers):
        factor = rate_factor(settings, length.progress(run.step, run.seconds))
        loss = take_step(run, forward, settings, batch, factor)
        average = loss if average is None else average.lerp(loss, 0.03)
        run.seconds = time.monotonic() - began
        if run.step % 20 == 0:
            where = f"{run.seconds:6.0f} s  step {run.step:5}  rows of {batch[0].size(1) - 1:4}"
            print(f"{where}  loss {average.item():.4f}", flush=True)
        if time.monotonic() - saved_at > settings.checkpoint_seconds:
            run.save(checkpoint)
            saved_at = time.monotonic()
    run.save(checkpoint)


def export(model: TinyLlama, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the bfloat16 checkpoint, tokenizer included."""
    to_transformers(model).bfloat16().save_pretrained(folder)
    generation = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)  # type: ignore[no-untyped-call]
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def replace_folder(new: Path, old: Path) -> None:
    """Put a finished folder in place of another, so that no reader sees half of one."""
    retired = old.with_name(old.name + ".old")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)


def stage_table(settings: Settings) -> str:
    """The curriculum, one line per stage; what is neither recall nor repetition is text."""
    lines = ["| from share of the run | tokens per row | recall tasks | repetition | text |"]
    lines.append("|" + " ---: |" * 5)
    for stage in settings.stages:
        shares = (stage.recall_share, stage.repeat_share, 1 - stage.recall_share - stage.repeat_share)
        cells = [f"{stage.begins:.0%}", f"{stage.length:,}", *(f"{share:.0%}" for share in shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(device: torch.device) -> str:
    """Where a run takes place, in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"


def describe(run: Run, settings: Settings) -> str:
    """The head of the model card: what the model is and how it was trained."""
    shape = run.model.shape
    parameters = sum(weight.numel() for weight in run.model.parameters())
    millions = run.step * settings.batch_tokens / 1e6
    longest = settings.stages[-1].length
    return f"""---
license: other
language: en
library_name: transformers
---

# Pagoda tiny

A small Llama trained from scratch on public text and on synthetic recall tasks, to test and to show an inference
engine: it writes English of a sort and repeats what its context states, as far as the recall table below shows. It
knows nothing and is no assistant.

- Architecture: `LlamaForCausalLM`, {parameters:,} parameters in bfloat16; {shape.layers} layers of width {shape.width},
  {shape.heads} query and {shape.key_value_heads} key-value heads of {shape.head_width},
  inner width {shape.inner_width}, tied embeddings, rotary base {shape.rotary_base:,.0f}.
- Tokenizer: byte-level BPE of {shape.vocabulary:,}, learned from the training text, each digit a token of its own.
- Context: trained on rows of up to {longest:,} tokens. `max_position_embeddings` is {shape.positions:,}, but nothing
  was trained or measured beyond {longest:,}.
- Training: {run.step:,} steps of {settings.batch_tokens:,} tokens, {millions:.1f} million in all,
  from seed {settings.seed}, in {run.seconds / 60:.0f} minutes on {machine(run.model.get_buffer("cosines").device)}.
- Optimisers: Muon for the layers' matrices (rate {settings.matrix_rate}), AdamW for the rest ({settings.other_rate}).
- Special tokens: `<|endoftext|>` separates documents and ends an assistant's turn; `<|system|>`, `<|user|>` and
  `<|assistant|>` open a message.

{stage_table(settings)}

Made by `scripts/train_tiny.py`. Every fiftieth passage of the text is held out: `held_out_passages` in
`scripts/tiny_corpus.py` gives them.
"""


def load_words(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The words of the recall tasks, from samples over the whole training slice."""
    starts = np.linspace(0, len(corpus.training) - 10_000, 60).astype(int)
    text = "".join(str(tokenizer.decode(corpus.training[start : start + 10_000].astype(int))) for start in starts)
    return common_words(tokenizer, text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/text/train"), help="folder of .txt files")
    parser.add_argument("--out", type=Path, default=Path("src/pagoda/assets/tiny"), help="the checkpoint's folder")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder for tokens and resumable state")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time, over all resumptions")
    parser.add_argument("--steps", type=int, help="train for exactly this many steps, whatever the time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on from --work; with --minutes 0, only export")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="print the figures of a checkpoint and stop")
    return parser.parse_args()


def evaluate(folder: Path, corpus: Corpus, tasks: RecallTasks, samples: int, device: str) -> evaluation.Report:
    """Measure a checkpoint as shipped, computing in bfloat16."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.device(device):
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return evaluation.measure(model, tokenizer, corpus, tasks, samples)


def main() -> None:
    options = parse_arguments()
    settings = settings_for(options.device, options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options.work, options.data)
    corpus = load_corpus(options.work, options.data, tokenizer)
    words = load_words(corpus, tokenizer)
    probes = RecallTasks(tokenizer, corpus.held_out, words)
    if options.evaluate:
        report = evaluate(options.evaluate, corpus, probes, settings.recall_samples, options.device)
        print(evaluation.report_markdown(report))
        return
    torch.manual_seed(settings.seed)
    model = TinyLlama(Shape()).to(options.device)
    run = Run(model, build_optimizers(model, settings))
    checkpoint = options.work / "run.pt"
    if options.resume:
        run.load(checkpoint)
    batches = Batches(settings, corpus, RecallTasks(tokenizer, corpus.training, words), tokenizer)
    train(run, settings, batches, Length(options.steps, options.minutes), checkpoint)
    fresh = options.work / "export"
    export(model, tokenizer, fresh)
    report = evaluate(fresh, corpus, probes, settings.recall_samples, options.device)
    evaluation.write_model_card(fresh, describe(run, settings), report, options.data)
    replace_folder(fresh, options.out)


if __name__ == "__main__":
    main()
