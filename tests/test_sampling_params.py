"""Types and ranges of sampling parameters, checked when they are made: nothing else may find out in a step."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pagoda import SamplingParams, StructuredOutputs
from pagoda.errors import InvalidSamplingError, StructuredOutputError

MANY_DIGITS = 10**5000

WRONG: list[dict[str, Any]] = [
    *({name: 2.0} for name in ("n", "top_k", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs", "seed")),
    *({name: True} for name in ("n", "temperature", "top_p", "max_tokens", "logprobs", "seed", "presence_penalty")),
    *({name: "1"} for name in ("n", "temperature", "min_p", "repetition_penalty", "frequency_penalty", "max_tokens")),
    *({name: None} for name in ("n", "temperature", "top_p", "ignore_eos", "skip_special_tokens", "min_tokens")),
    *({name: 1} for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")),
    *({name: MANY_DIGITS} for name in ("n", "temperature", "max_tokens", "seed", "repetition_penalty")),
    *({"temperature": value} for value in (float("nan"), float("inf"), -0.1, np.float32("nan"), 1j)),
    *({"stop": value} for value in (b"x", ("x", b"y"), 5, "", ["a", ""], ["a" * 257], (each for each in "ab"))),
    *({"stop_token_ids": value} for value in ("12", 5, [1.0], [True], np.array([1.5]), [None])),
    *({"logit_bias": value} for value in ([1], {"1": 2.0}, {1: "2"}, {1.0: 2.0}, {1: float("nan")}, {1: MANY_DIGITS})),
    *({"structured_outputs": value} for value in ({"json": {}}, "json", 5)),
    {"min_tokens": 5, "max_tokens": 4},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{next(iter(wrong))}-{type(next(iter(wrong.values())))}")
def test_what_is_no_such_value_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSamplingError, match=next(iter(wrong))):
        SamplingParams(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"json": 5},
        {"json": [1]},
        {"json_object": 1},
        {"regex": b"a"},
        {"grammar": 5},
        *({"choice": value} for value in ("ab", 5, [b"a"], [], ["a", ""], (each for each in "ab"))),
    ],
    ids=lambda wrong: str(wrong).partition(" at 0x")[0],
)
def test_a_form_of_another_type_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(StructuredOutputError, match=next(iter(wrong))):
        StructuredOutputs(**wrong)


def test_what_means_the_same_is_taken() -> None:
    SamplingParams(n=np.int64(2), temperature=np.float32(0.5), top_p=1, max_tokens=None, stop={"a", "b"})
    SamplingParams(stop_token_ids=np.array([1, 2]), logit_bias={np.int32(3): 1})
    as_in_vllm = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None)
    assert as_in_vllm == SamplingParams()
    StructuredOutputs(choice={"a", "b"})
    StructuredOutputs(choice=np.array(["a", "b"]))


def test_what_is_kept_is_python_s_own() -> None:
    """Numpy's small numbers overflow, a fraction is none for torch, and a list may change after it was checked."""
    stops, biases = ["a"], {np.uint8(3): Fraction(1, 2)}
    params = SamplingParams(
        n=np.uint8(2), top_p=Fraction(1, 2), stop=stops, stop_token_ids=[np.int8(5)], logit_bias=biases
    )
    stops.append(b"x")
    biases[np.uint8(4)] = "x"
    assert (type(params.n), type(params.top_p), params.stop) == (int, float, ["a"])
    assert [type(token) for token in (*params.stop_token_ids, *params.logit_bias)] == [int, int]
    assert params.logit_bias == {3: 0.5}
