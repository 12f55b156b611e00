"""What `--explain` prints comes to what it says, and to what the plan says."""

from __future__ import annotations

import re
from math import ceil, floor

import pytest

from pagoda import plan
from pagoda.analysis.formulas import Formula, formulas

CASES = [
    ("llama-3-70b", {"machine": "H100", "gpus": 4, "context": 4096, "users": 8}),
    ("llama-3-8b", {"machine": "A100", "context": 8000, "users": 5, "shared_prefix": 1000}),
    ("llama-3-8b", {"machine": "A100", "kv_cache_dtype": "int8"}),
    ("llama-3-8b", {"machine": "A100", "users": 5, "quantization": "int4", "sparse_attention": "quest:tokens=2048"}),
    ("llama-3-8b", {"machine": "A100", "kv_cache_dtype": "k8v4"}),
    ("gemma-3-27b", {"machine": "H200", "kv_cache_dtype": "full=int8"}),
    ("deepseek-v3", {"machine": "B200", "gpus": 16}),
    ("qwen3-next-80b-a3b", {"memory": "200GiB", "bandwidth": "3TB/s"}),
    ("mamba-2.8b", {"machine": "L4"}),
    ("whisper-large-v3", {"machine": "RTX 4090"}),
    ("t5-base", {}),
    ("gpt2", {"kv_cache_memory_bytes": "1GiB", "kv_cache_dtype": "int4"}),
]
FUNCTIONS = {"ceil": ceil, "floor": floor, "min": min}


def value_of(expression: str) -> float:
    """Words name numbers and mean nothing; x is times."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", expression)
    text = re.sub(r"\bx\b", "*", text)
    text = re.sub(rf"\b(?!(?:{'|'.join(FUNCTIONS)})\()[a-z]+\b", "", text)
    return float(eval(text, {"__builtins__": {}}, FUNCTIONS))


@pytest.mark.parametrize(("model", "options"), CASES, ids=repr)
def test_formulas_come_to_their_values(model: str, options: dict[str, object]) -> None:
    found = formulas(plan(model, **options))
    assert len(found) >= 2
    for each in found:
        assert value_of(each.expression) == pytest.approx(each.value, rel=1e-12), each


@pytest.mark.parametrize(("model", "options"), CASES, ids=repr)
def test_values_are_those_of_the_plan(model: str, options: dict[str, object]) -> None:
    found = plan(model, **options)
    values: dict[str, Formula] = {each.name: each for each in formulas(found)}
    for group in found.main.groups:
        assert values[f"a token, {group.name}"].value == group.nbytes_per_token
    for decode in found.main.decode:
        assert values[f"a decode step of {decode.users:,} users"].value == decode.seconds
    limits = [each.value for name, each in values.items() if name.startswith("users, by")]
    if found.main.memory is not None and found.main.groups:
        assert min(limits) == found.main.users_by_memory


def test_the_published_formula() -> None:
    first = next(each for each in formulas(plan("llama-3-70b")) if each.name == "a token, full")
    assert (first.expression, first.value) == ("80 layers x 2 x 8 heads x 128 x 2 bytes", 327_680)
