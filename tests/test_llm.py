"""The public class: what it takes as prompts and parameters, where text ends, and what a forked process may do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import processes
from pagoda import LLM, SamplingParams
from pagoda.errors import InvalidSamplingError, RequestError

ONE = SamplingParams(temperature=0, max_tokens=1)
STORY = "The sea was calm and"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(kv_cache_memory_bytes=64 << 20, num_threads=1) as llm:
        yield llm


@pytest.mark.parametrize(
    "prompts",
    [
        lambda: (text for text in ["one", "two", "three"]),
        lambda: iter(["one", "two", "three"]),
        lambda: ("one", "two", "three"),
        {"one": 1, "two": 2, "three": 3}.keys,
    ],
)
def test_every_prompt_of_an_iterable_is_read(llm: LLM, prompts: Any) -> None:
    assert [output.prompt for output in llm.generate(prompts(), ONE, use_tqdm=False)] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("prompts", "token_ids"),
    [
        (np.array([5, 6, 7]), [[5, 6, 7]]),
        (torch.tensor([5, 6, 7]), [[5, 6, 7]]),
        (range(5, 8), [[5, 6, 7]]),
        (iter([5, 6, 7]), [[5, 6, 7]]),
        ([np.int64(5), 6], [[5, 6]]),
        (np.array([[5, 6], [7, 8]]), [[5, 6], [7, 8]]),
        (torch.tensor([[5], [7]]), [[5], [7]]),
        ([np.array([5, 6]), torch.tensor([7]), [8]], [[5, 6], [7], [8]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arrays_and_tensors_are_token_ids(llm: LLM, prompts: Any, token_ids: list[list[int]]) -> None:
    assert [output.prompt_token_ids for output in llm.generate(prompts, ONE, use_tqdm=False)] == token_ids


@pytest.mark.parametrize(
    "prompts", [5, None, [None], b"abc", [b"abc"], np.array([1.5]), torch.tensor(5), [["a"]], [{}]]
)
def test_what_is_no_prompt_is_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError):
        llm.generate(prompts, ONE, use_tqdm=False)


@pytest.mark.parametrize("params", [5, "x", {"n": 1}, [ONE, 5], [ONE, None], 0])
def test_what_are_no_parameters_is_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(InvalidSamplingError, match=r"SamplingParams\(...\)"):
        llm.generate(["a", "b"], params, use_tqdm=False)


@pytest.mark.parametrize("salt", [5, None, b"x", [1]])
def test_a_salt_is_text(llm: LLM, salt: Any) -> None:
    with pytest.raises(RequestError, match="cache_salt"):
        llm.generate("a", ONE, use_tqdm=False, cache_salt=salt)


def test_nothing_that_a_tokenizer_raises_ends_another_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.generate(STORY, SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)[0].text
    decode = llm.tokenizer.decode

    def end(ids: list[int], **options: Any) -> str:
        if ids[-1] == 7:
            raise SystemExit(3)
        return decode(ids, **options)

    async def both() -> list[Any]:
        params = [SamplingParams(temperature=0, max_tokens=20, logit_bias=bias) for bias in ({}, {7: 100})]
        return await asyncio.gather(*(llm.generate_async(STORY, each) for each in params), return_exceptions=True)

    monkeypatch.setattr(llm.tokenizer, "decode", end)
    innocent, guilty = asyncio.run(both())
    assert isinstance(guilty, RequestError)
    assert innocent[0].text == expected


def greedy(llm: LLM, **more: Any) -> Any:
    return llm.generate(STORY, SamplingParams(temperature=0, max_tokens=12, **more), use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize("place", [0, 4])
def test_the_text_ends_before_the_token_that_ends_it(llm: LLM, place: int) -> None:
    token_ids = greedy(llm).token_ids
    stop = token_ids[place]
    place = token_ids.index(stop)
    shown = greedy(llm, stop_token_ids=[stop])
    assert (shown.token_ids, shown.stop_reason) == (token_ids[: place + 1], stop)
    assert shown.text == llm.tokenizer.decode(token_ids[:place])
    chunks = list(llm.stream(STORY, SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[stop])))
    assert "".join(chunk.text for chunk in chunks) == shown.text
    with_it = greedy(llm, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert with_it.text == llm.tokenizer.decode(token_ids[: place + 1])


def test_a_request_whose_end_comes_with_another_s_failure_ends(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    append = llm.engine._settler._append

    def fail_for_one(sequence: Any, *rest: Any) -> None:
        if sequence.request.params.max_tokens == 2:
            raise MemoryError
        append(sequence, *rest)

    async def both() -> list[Any]:
        params = [SamplingParams(max_tokens=count, temperature=0) for count in (1, 2)]
        calls = [llm.generate_async("One", each) for each in params]
        return await asyncio.gather(*(asyncio.wait_for(call, 60) for call in calls), return_exceptions=True)

    monkeypatch.setattr(llm.engine._settler, "_append", fail_for_one)
    innocent, guilty = asyncio.run(both())
    assert len(innocent[0].outputs[0].token_ids) == 1
    assert isinstance(guilty, RequestError)
    assert llm.cache_stats().groups[0].in_use == 0


FORK = """
import os, sys
from pagoda import LLM, SamplingParams
from pagoda.errors import EngineClosedError

def ends_with(number, what):
    child = os.fork()
    if not child:
        what()
        sys.exit(number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == number

def use():
    for call in (lambda: llm.generate("x", use_tqdm=False), lambda: next(llm.stream("x")), llm.cache_stats):
        try:
            call()
        except EngineClosedError as error:
            assert "forked" in str(error)
        else:
            sys.exit(1)
    llm.close()

with LLM(kv_cache_memory_bytes=64 << 20) as llm:
    one = SamplingParams(max_tokens=1)
    llm.generate("x", one, use_tqdm=False)
    ends_with(7, lambda: None)
    ends_with(8, use)
    llm.generate("x", one, use_tqdm=False)
"""


def test_a_forked_process_is_told_so_and_ends() -> None:
    done = processes.run(script=FORK, timeout=120)
    assert done.returncode == 0, done.stderr
