"""Grammars that take any time and memory, at once or later, end for those who sent them alone."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import Any

import psutil
import pytest
import torch

import processes
from pagoda import LLM, SamplingParams, StructuredOutputs
from pagoda.errors import RequestCancelledError, StructuredOutputError
from pagoda.structured import compiler as compilers
from pagoda.structured import lane
from pagoda.structured.compiler import GrammarCompiler

# Each is harmless; of all together a single derivative has 2**24 parts.
CORES = [rf"(a|b)*a(a|b){{{number}}}" for number in range(10, 34)]
SIMPLE = StructuredOutputs(regex="(yes|no){3}")
FREE = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
MANY_SECONDS = 60  # on a machine that does much else


def all_of(patterns: list[str]) -> dict[str, Any]:
    return {"allOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}


# Outputs of the letter q may end at any time; the first c after 40 of them explodes.
LATE = StructuredOutputs(json=all_of([f"^(q*|q{{40}}c{core})$" for core in CORES]))

AT_ONCE = {
    "schema": {"json": all_of(CORES)},
    "whole": {"json": all_of([f"^({core})$" for core in CORES])},
    "property": {"json": {"type": "object", "properties": {"a": {"type": "integer"}, "b": all_of(CORES)}}},
    "items": {"json": json.dumps({"type": "array", "items": all_of(CORES)})},
    "lark": {"grammar": "start: A\nA: " + " & ".join(f"/{core}/" for core in CORES)},
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(kv_cache_memory_bytes=64 << 20, num_threads=1) as llm:
        yield llm


@pytest.fixture
def grammars(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarCompiler]:
    """A compiler of its own, which knows no grammar yet, and is impatient."""
    monkeypatch.setattr(compilers, "COMPILE_SECONDS", 0.5)
    grammars = GrammarCompiler(llm.tokenizer, 4096, frozenset({0}))
    yield grammars
    grammars.close()


def late(llm: LLM) -> SamplingParams:
    """Comes to where it explodes."""
    letters = {token: set(text) for text, token in llm.tokenizer.get_vocab().items()}
    biases = {token: 60.0 if "c" in found else 30.0 for token, found in letters.items() if found <= {"q", "c"}}
    return SamplingParams(temperature=0, max_tokens=80, logit_bias=biases, structured_outputs=LATE)


@pytest.mark.parametrize("wanted", AT_ONCE.values(), ids=AT_ONCE)
def test_what_explodes_is_refused_and_remembered(grammars, wanted):
    form = StructuredOutputs(**wanted)
    with pytest.raises(StructuredOutputError, match=f"^{form.kind} cannot be enforced: .*simpler form") as refused:
        grammars.compile(form)
    assert grammars.compile(SIMPLE) is not None
    grammars.close()  # nothing can be compiled from now on
    for look_up in (grammars.compile, grammars.find):
        with pytest.raises(StructuredOutputError) as again:
            look_up(form)
        assert str(again.value) == str(refused.value)
    assert grammars.find(SIMPLE) is not None


def test_memory_is_bounded_as_well(llm, monkeypatch):
    monkeypatch.setattr(compilers, "COMPILE_SECONDS", MANY_SECONDS)
    monkeypatch.setattr(compilers, "MEMORY_NBYTES", 256 << 20)
    grammars = GrammarCompiler(llm.tokenizer, 4096, frozenset({0}))
    with pytest.raises(StructuredOutputError, match="too much memory"):
        grammars.compile(StructuredOutputs(json=all_of(CORES)))
    assert grammars.compile(SIMPLE) is not None
    grammars.close()


def test_what_explodes_later_ends_its_own_request(llm):
    prompts = ["The sea was calm, and", "So it"]
    others = [FREE, SamplingParams(temperature=0, max_tokens=60, structured_outputs=SIMPLE)]
    wanted = [output.outputs for output in llm.generate(prompts, others)]
    with ThreadPoolExecutor() as threads:
        exploding = threads.submit(llm.generate, "x", late(llm))
        for _ in range(3):
            assert [output.outputs for output in llm.generate(prompts, others)] == wanted
        with pytest.raises(StructuredOutputError, match=r"any longer: what may come next took .*simpler form"):
            exploding.result()
    with pytest.raises(StructuredOutputError, match=r"^json cannot be enforced: what may come next"):
        llm.generate("x", late(llm))
    assert [output.outputs for output in llm.generate(prompts, others)] == wanted
    llm.check_integrity()
    assert llm.cache_stats().groups[0].in_use == 0


def exploding(grammars: GrammarCompiler, tokenizer: Any, tenant: str, name: str) -> Any:
    """A matcher that finds what may come next for ever, or for as long as it may."""
    assert isinstance(LATE.json, dict)
    matcher = grammars.compile(StructuredOutputs(json=LATE.json | {"description": name}), tenant).new()
    for token in tokenizer.encode('"' + "q" * 40, add_special_tokens=False):
        matcher.push(token)
    return matcher


@pytest.mark.parametrize("how", ["explodes", "is slow"])
def test_who_had_that_happen_keeps_no_other_waiting(grammars, llm, monkeypatch, how):
    if how == "explodes":
        with pytest.raises(StructuredOutputError, match="any longer"):
            exploding(grammars, llm.tokenizer, "evil", "first").mask(torch.zeros(4096))
    else:
        with monkeypatch.context() as change:
            change.setattr(lane, "SLOW_SECONDS", -1.0)
            follow(grammars.compile(SIMPLE, "evil").new(), llm.tokenizer, "yesnoyes")
    monkeypatch.setattr(lane, "ADVANCE_SECONDS", MANY_SECONDS)
    evil = exploding(grammars, llm.tokenizer, "evil", "second")
    follow(grammars.compile(SIMPLE, "good").new(), llm.tokenizer, "yesnoyes")
    assert not evil.is_ready
    grammars.close()
    with pytest.raises(StructuredOutputError, match="any longer"):
        evil.mask(torch.zeros(4096))


def follow(matcher: Any, tokenizer: Any, text: str) -> None:
    """Every token of a text is allowed, and then nothing can follow."""
    for token in tokenizer.encode(text, add_special_tokens=False):
        logits = torch.zeros(4096)
        matcher.mask(logits)
        assert logits[token] == 0
        matcher.push(token)
    assert matcher.is_done


def test_a_compilation_that_nobody_wants_is_given_up_and_held_against_nobody(grammars):
    wanted = threading.Event()
    wanted.set()
    threading.Timer(0.3, wanted.clear).start()
    form = StructuredOutputs(**AT_ONCE["schema"])
    with pytest.raises(RequestCancelledError):
        grammars.compile(form, is_wanted=wanted.is_set)
    assert grammars.find(form) is None


def test_closing_gives_up_what_is_compiled(grammars):
    with ThreadPoolExecutor() as threads:
        compiled = [
            threads.submit(grammars.compile, StructuredOutputs(json=all_of([*CORES, name]))) for name in ("x", "y", "z")
        ]
        threading.Timer(0.5, grammars.close).start()
        for each in compiled:
            with pytest.raises(RequestCancelledError):
                each.result()


FORGOTTEN = """
import gc, sys, threading, time
import psutil, torch
from pagoda import StructuredOutputs
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.tokenizer import load_tokenizer
from pagoda.structured.compiler import GrammarCompiler

def found():
    gc.collect()
    threads = [thread for thread in threading.enumerate() if thread.name == "pagoda-grammars"]
    return len(threads) + len(psutil.Process().children())

tokenizer = load_tokenizer(EMBEDDED_MODEL)
grammars = GrammarCompiler(tokenizer, 4096, frozenset({0}))
matcher = grammars.compile(StructuredOutputs(regex="(yes|no){3}")).new()
for token in tokenizer.encode("yesnoyes", add_special_tokens=False):
    matcher.mask(torch.zeros(4096))
    matcher.push(token)
assert matcher.is_done and found()
del grammars, matcher
deadline = time.monotonic() + 60
while found():
    assert time.monotonic() < deadline, "something is left of a compiler that nobody has"
"""


def test_a_compiler_that_is_forgotten_ends_its_children_and_threads():
    """In a process of its own, where nobody else has any."""
    done = processes.run(script=FORGOTTEN, timeout=240)
    assert done.returncode == 0, done.stderr


def test_an_engine_closes_while_a_grammar_explodes():
    llm = LLM(kv_cache_memory_bytes=64 << 20, num_threads=1)
    chunks = llm.stream("x", late(llm))
    text = ""
    while len(text) < 30:
        text += next(chunks).text
    started = monotonic()
    llm.close()
    assert monotonic() - started < MANY_SECONDS


def test_children_may_die_at_any_time(llm):
    """Where a sequence stands is told to the next one."""
    params = SamplingParams(
        temperature=1.5, seed=1, n=3, max_tokens=200, structured_outputs=StructuredOutputs(regex="([a-z]{3} ){40}")
    )
    undisturbed = llm.generate("x", params)[0].outputs
    chunks = []
    for chunk in llm.stream("x", params):
        chunks.append(chunk)
        if len(chunks) % 20 == 10:
            for child in psutil.Process().children():
                with suppress(ProcessLookupError):  # it ends by itself where others have been killed
                    os.kill(child.pid, signal.SIGKILL)
    assert chunks[-1].output.outputs == undisturbed


def test_large_schemas_are_no_bombs(grammars):
    """The tools of many agents together."""
    arguments = {
        "path": {"type": "string", "description": "Where it is. " * 10},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100_000},
        "mode": {"enum": [f"mode_{number}" for number in range(20)]},
        "when": {"type": "string", "format": "date-time"},
        "edits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"old": {"type": "string", "minLength": 1}, "new": {"type": "string"}},
                "required": ["old", "new"],
                "additionalProperties": False,
            },
            "maxItems": 50,
        },
        "options": {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "number"}]}},
    }
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": f"tool_{number}"},
                "arguments": {"type": "object", "properties": arguments, "required": ["path"]},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number in range(150)
    ]
    assert grammars.compile(StructuredOutputs(json={"anyOf": calls})) is not None
