"""Breaks checkpoints at random and loads each in a process of its own: every one generates text or is a named error.

    python scripts/fuzz_checkpoints.py --mutations 5000

A mutation follows from --seed and its number, whatever else is run; --only NUMBER runs one again and shows what it
raises. Each process may take so many seconds and so much memory beyond that of the libraries. Prints what came of how
many, the slowest, the largest, and every failure; the exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from checkpoint_bases import write_bases
from checkpoint_mutations import mutate

from pagoda import LLM, SamplingParams
from pagoda.errors import PagodaError

PAGES_NBYTES = 4 << 20
PROMPT = "a word, and another"
CHAT = [{"role": "user", "content": PROMPT}]
# Beside memory, threads and arenas of the allocator take address space.
ADDRESS_SPACE_FACTOR = 2


@dataclass(frozen=True)
class Outcome:
    """What came of one mutation. `kind` is "text", "refused" (at load), "failed" (a request) or what must not be."""

    number: int
    mutation: str
    kind: str
    message: str
    seconds: float
    nbytes: int  # beyond those of a process that loads nothing

    @property
    def is_right(self) -> bool:
        return self.kind in ("text", "refused", "failed")


def main() -> int:
    options = _options()
    os.environ["RUST_BACKTRACE"] = "0"
    torch.set_num_threads(1)
    with TemporaryDirectory() as work:
        bases = write_bases(Path(work) / "bases")
        _generate(bases[0])  # what all need is imported and compiled before the first fork
        numbers = range(options.mutations) if options.only is None else [options.only]
        start = monotonic()
        outcomes = [_outcome(number, bases, Path(work), options) for number in numbers]
        _report(outcomes, monotonic() - start)
    return 0 if all(outcome.is_right for outcome in outcomes) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the one to run, with a traceback")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each")
    parser.add_argument("--memory-mib", type=int, default=1024, help="for each")
    return parser.parse_args()


def _outcome(number: int, bases: list[Path], work: Path, options: argparse.Namespace) -> Outcome:
    random = Random(f"{options.seed}:{number}")
    base = random.choice(bases)
    directory = Path(shutil.copytree(base, work / "broken"))
    try:
        mutation = f"{base.name}: {mutate(directory, random, random.choice((1, 1, 1, 2)))}"
        return _tried(number, mutation, directory, options)
    finally:
        shutil.rmtree(directory)


def _tried(number: int, mutation: str, directory: Path, options: argparse.Namespace) -> Outcome:
    """Of a child process, which says how much memory it begins with, and how it went, through a pipe."""
    start = monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(directory, writing, options)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        first, said = pipe.readline(), pipe.read()
    _, status, usage = os.wait4(child, 0)
    seconds, nbytes = monotonic() - start, usage.ru_maxrss * 1024 - int(first)
    kind, message = json.loads(said) if said else ("killed", f"exit status {os.waitstatus_to_exitcode(status)}")
    if nbytes > options.memory_mib << 20:
        kind, message = "large", f"{nbytes >> 20} MiB, {message}"
    return Outcome(number, mutation, kind, message, seconds, nbytes)


def _be_child(directory: Path, writing: int, options: argparse.Namespace) -> None:
    """Never returns."""
    address_space, resident = _own_nbytes()
    os.write(writing, b"%d\n" % resident)
    if options.only is None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    limit = address_space + (ADDRESS_SPACE_FACTOR * options.memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, options.seconds)
    try:
        said = _generate(directory)
    except BaseException as error:
        said = ("raised", f"{type(error).__name__}: {error}"[:500])
        if options.only is not None:
            traceback.print_exc()
    with suppress(BaseException):
        os.write(writing, json.dumps(said).encode())
    os._exit(0)


def _generate(directory: Path) -> tuple[str, str]:
    try:
        llm = LLM(directory, kv_cache_memory_bytes=PAGES_NBYTES, max_num_seqs=4)
    except PagodaError as error:
        return "refused", f"{type(error).__name__}: {error}"[:500]
    with llm:
        try:
            for use in (_text, _chat):
                use(llm)
        except PagodaError as error:
            return "failed", f"{type(error).__name__}: {error}"[:500]
        llm.check_integrity()
        return "text", ""


def _text(llm: LLM) -> None:
    if llm.engine.model.encoder is not None and not llm.engine.model.encoder.reads_text:
        prompt: Any = {"input_features": torch.zeros(llm.engine.model.encoder.feature_shape)}
    else:
        prompt = PROMPT if llm.tokenizer is not None else [1, 2, 3]
    output = llm.generate(prompt, SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
    assert len(output[0].outputs[0].token_ids) == 2


def _chat(llm: LLM) -> None:
    if llm.tokenizer is not None and llm.tokenizer.chat_template is not None:
        llm.chat(CHAT, SamplingParams(max_tokens=1), use_tqdm=False)


def _own_nbytes() -> tuple[int, int]:
    """Address space, and memory."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[0]) * os.sysconf("SC_PAGESIZE"), int(pages[1]) * os.sysconf("SC_PAGESIZE")


def _report(outcomes: list[Outcome], seconds: float) -> None:
    counts = Counter(outcome.kind for outcome in outcomes)
    print(
        f"{len(outcomes)} mutations in {seconds:.0f} s: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
    )
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    largest = max(outcomes, key=lambda outcome: outcome.nbytes)
    print(f"slowest {slowest.seconds:.1f} s: {_line(slowest)}")
    print(f"largest {largest.nbytes >> 20} MiB: {_line(largest)}")
    for outcome in outcomes:
        if not outcome.is_right:
            print(f"WRONG {_line(outcome)}")


def _line(outcome: Outcome) -> str:
    return ascii(f"{outcome.number}, {outcome.mutation}: {outcome.kind}, {outcome.message}")[1:-1]


if __name__ == "__main__":
    sys.exit(main())
