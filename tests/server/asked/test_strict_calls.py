"""Calls of strict tools fit their schemas in every dialect that marks calls, and the model may write other text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoTokenizer

from pagoda.llm import EMBEDDED_MODEL
from pagoda.server.asked.strict_calls import strict_form
from pagoda.structured.compiler import GrammarCompiler
from server.replies.families import FAMILIES, Family

PLACE = {"$ref": "#/$defs/Place"}
SCHEMA = {
    "type": "object",
    "properties": {
        "place": {"enum": ["Dover", "Deal"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"type": "string"},
        "near": {"type": "array", "items": PLACE},
        "nights": {"$ref": "#/properties/days"},
        "never": False,
    },
    "required": ["place", "days"],
    "additionalProperties": False,
    "$defs": {"Place": {"type": "object", "properties": {"name": {"enum": ["Sea"]}}, "additionalProperties": False}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "now"}},
]
SOME = {"place": "Dover", "days": 3}
ALL = {**SOME, "note": "It's 5 < 6,\nor so.", "near": [{"name": "Sea"}], "nights": 4}
FITTING = [
    (("weather", SOME),),
    (("weather", ALL), ("tide", {"free": "Well."})),
    (("now", {}), ("weather", ALL)),
]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("weather", {"place": "Bath", "days": 3}),
    ("weather", {"place": "Dover", "days": 30}),
    ("weather", {"place": "Dover"}),
    ("weather", {**SOME, "near": [{"name": "Bath"}]}),
    ("weather", {**SOME, "nights": 30}),
    ("weather", {**SOME, "never": 1}),
    ("rain", SOME),
    ("now", {"place": "Dover"}),
]
STRICT = [
    (name, is_token) for name in FAMILIES if FAMILIES[name].dialect.shape is not None for is_token in (True, False)
]


@dataclass(frozen=True)
class Held:
    """A family whose models are held to strict calls. Their marks may be tokens, and some of these special."""

    family: Family
    tokenizer: Any
    constraint: Any

    def accepts(self, text: str) -> bool:
        """Whether a model may write the text, and end there."""
        matcher, end = self.constraint.new(), self.tokenizer.eos_token_id
        for token in [*self.tokenizer.encode(text, add_special_tokens=False), end]:
            logits = torch.zeros(len(self.tokenizer))
            matcher.mask(logits)
            if logits[token]:
                return False
            if token != end:
                matcher.push(token)
        return True


@cache
def with_marks(marks: tuple[str, ...]) -> tuple[Any, GrammarCompiler]:
    """A tokenizer whose tokens these are as well, and the compiler of its grammars."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=i % 2 == 0) for i, mark in enumerate(marks)])
    return tokenizer, GrammarCompiler(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id]))


@pytest.fixture(scope="module", params=STRICT, ids=lambda param: f"{param[0]}-{'tokens' if param[1] else 'text'}")
def held(request: pytest.FixtureRequest) -> Held:
    name, is_token = request.param
    family = FAMILIES[name]
    tokenizer, compiler = with_marks((*family.dialect.starts, *family.dialect.marks) if is_token else ())
    form = strict_form(TOOLS, {"weather", "now"}, family.dialect, tokenizer)
    return Held(family, tokenizer, compiler.compile(form))


@pytest.mark.parametrize("calls", FITTING, ids=["one", "two", "none"])
def test_calls_that_fit_may_be_written(held: Held, calls: tuple) -> None:
    _, text = held.family.reply(calls)
    assert held.accepts(text)
    assert held.accepts("Let me see: " + text)


@pytest.mark.parametrize(
    "call", WRONG, ids=["enum", "maximum", "required", "reference", "property", "false", "name", "none"]
)
def test_calls_that_do_not_fit_may_not(held: Held, call: tuple) -> None:
    assert not held.accepts(held.family.reply((call,))[1])


@pytest.mark.parametrize(
    "parameters", [{"properties": 5}, {"properties": {"a": {"enum": 5}}, "required": 5}, {"type": 5}]
)
def test_schemas_that_are_none_make_a_grammar_all_the_same(held: Held, parameters: dict) -> None:
    """It is refused where it is compiled, if what is wrong in it matters."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    assert strict_form([tool], {"weather"}, held.family.dialect, held.tokenizer) is not None


def test_text_is_free(held: Held) -> None:
    assert held.accepts('Just {"name": "weather"} < [words]\n\nand more.')
