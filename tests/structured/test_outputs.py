"""Structured output with the embedded model: whatever it writes has the form that was asked for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagoda import LLM, FinishReason, RequestOutput, SamplingParams, StructuredOutputs
from pagoda.errors import RequestError, StructuredOutputError, TokenizerRequiredError
from pagoda.structured.compiler import GrammarCompiler
from pagoda.structured.source import MAX_SOURCE_LENGTH

MAX_TOKENS = 400
PROMPT = "The room was a pleasant one, and"

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", 7, None]},
        "weight": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-c]{1,3}$"}, "minItems": 1, "maxItems": 3},
        "home": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 8}, "is_far": {"type": "boolean"}},
            "required": ["street", "is_far"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "kind", "weight", "tags", "home"],
    "additionalProperties": False,
}

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON Schema that these tests use, by its plain meaning."""
    if "enum" in schema:
        return any(value is each or (value == each and type(value) is type(each)) for each in schema["enum"])
    kind = schema["type"]
    is_flag = isinstance(value, bool)
    return isinstance(value, TYPES[kind]) and is_flag == (kind == "boolean") and IS_WITHIN[kind](value, schema)


def is_object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    known = schema["properties"]
    has_names = set(schema["required"]) <= set(value) <= set(known)
    return has_names and all(is_valid(each, known[name]) for name, each in value.items())


def is_array(value: list[Any], schema: dict[str, Any]) -> bool:
    return schema.get("minItems", 0) <= len(value) <= schema["maxItems"] and all(
        is_valid(each, schema["items"]) for each in value
    )


def is_number(value: float, schema: dict[str, Any]) -> bool:
    return bool(schema["minimum"] <= value <= schema["maximum"]) and not value % schema.get("multipleOf", 0.5)


def is_string(value: str, schema: dict[str, Any]) -> bool:
    return len(value) <= schema.get("maxLength", 3) and bool(re.search(schema.get("pattern", ""), value))


IS_WITHIN = {
    "string": is_string,
    "integer": is_number,
    "number": is_number,
    "boolean": lambda value, schema: True,
    "array": is_array,
    "object": is_object,
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(kv_cache_memory_bytes=64 << 20, num_threads=1) as llm:
        yield llm


def asked(temperature: float = 1.0, max_tokens: int = MAX_TOKENS, **wanted: Any) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, seed=3, max_tokens=max_tokens, structured_outputs=StructuredOutputs(**wanted)
    )


def texts(outputs: list[RequestOutput]) -> list[str]:
    """Of all samples, each of which must have come to its end."""
    samples = [sample for output in outputs for sample in output.outputs]
    assert {sample.finish_reason for sample in samples} == {FinishReason.STOP}
    return [sample.text for sample in samples]


@pytest.mark.parametrize("schema", [PERSON, json.dumps(PERSON)], ids=["dictionary", "text"])
def test_json_is_valid(llm, schema):
    params = [asked(temperature, json=schema) for temperature in (0, 1.0, 2.0)]
    for text in texts(llm.generate([PROMPT] * 3, params)):
        assert is_valid(json.loads(text), PERSON)


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """Schemas whose values are of limited length."""
    kinds = ["string", "integer", "boolean", "enum", *(["array", "object"] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "enum":
        values = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=5))
        return {"enum": draw(st.lists(values, min_size=1, max_size=3))}
    schema: dict[str, Any] = {"type": kind}
    if kind == "string":
        schema["maxLength"] = draw(st.integers(0, 6))
    if kind == "integer":
        schema["minimum"] = draw(st.integers(-200, 200))
        schema["maximum"] = schema["minimum"] + draw(st.integers(0, 300))
    if kind == "array":
        schema |= {"items": draw(schemas(depth - 1)), "maxItems": draw(st.integers(0, 2))}
    if kind == "object":
        names = draw(st.lists(st.text(max_size=3), max_size=2, unique=True))
        schema["properties"] = {name: draw(schemas(depth - 1)) for name in names}
        schema |= {"required": draw(st.permutations(names))[:1], "additionalProperties": False}
    return schema


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(batch=st.lists(schemas(), min_size=1, max_size=6))
def test_json_is_valid_for_any_schema(llm, batch):
    params = [asked(1.5, json=schema) for schema in batch]
    for text, schema in zip(texts(llm.generate([PROMPT] * len(batch), params)), batch, strict=True):
        assert is_valid(json.loads(text), schema)


def test_any_object_of_json(llm):
    for text in texts(llm.generate([PROMPT], asked(0, json_object=True))):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("pattern", [r"[a-z]{3}-\d{2}", r"(ab){2,4}", r"[^x]{1,9}!", "é?日本|naïve"])
def test_a_regular_expression_matches_the_whole_output(llm, pattern):
    params = asked(2.0, regex=pattern)
    for text in texts(llm.generate([PROMPT, "So it", "1"], params)):
        assert re.fullmatch(pattern, text)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(choices=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_choice_is_one_of_them(llm, choices):
    assert set(texts(llm.generate([PROMPT, "x"], asked(2.0, choice=choices)))) <= set(choices)


def test_a_grammar_is_kept(llm):
    params = asked(1.0, grammar='start: "f(" arg ("," arg){0,3} ")"\narg: /[0-9]{1,2}/ | "x"')
    for text in texts(llm.generate([PROMPT, "x"], params)):
        assert re.fullmatch(r"f\((\d{1,2}|x)(,(\d{1,2}|x)){0,3}\)", text)


def test_white_space_in_json_is_limited(llm):
    """A model that prefers white space to all else comes to an end."""
    tokens = [*range(llm.engine.model.vocab_size)]
    blank = {token: 100.0 for token in tokens if not llm.tokenizer.decode([token]).strip(" \n\t")}
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    wanted = StructuredOutputs(json=schema)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, logit_bias=blank, structured_outputs=wanted)
    (text,) = texts(llm.generate([PROMPT], params))
    assert json.loads(text) == {"a": 1} and "\n" in text


def test_stop_strings_end_a_form_early(llm):
    wanted = StructuredOutputs(choice=["one, two"])
    output = llm.generate([PROMPT], SamplingParams(stop=",", structured_outputs=wanted))[0].outputs[0]
    assert (output.text, output.stop_reason) == ("one", ",")


def test_samples_differ_and_all_fit(llm):
    params = SamplingParams(n=4, seed=2, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputs(json=PERSON))
    found = texts(llm.generate([PROMPT], params))
    assert len(set(found)) == 4
    assert all(is_valid(json.loads(text), PERSON) for text in found)


def test_preempted_outputs_are_the_same():
    params = asked(1.0, json=PERSON)
    prompts = [f"{PROMPT} {number} more" for number in range(5)]
    tight, roomy = (LLM(kv_cache_memory_bytes=size << 20, num_threads=1, max_model_len=500) for size in (4, 32))
    with tight, roomy:
        crowded = tight.generate(prompts, params)
        assert sum(output.metrics.num_preemptions for output in crowded) > 0
        assert texts(crowded) == texts(roomy.generate(prompts, params))
        tight.check_integrity()


def test_a_model_without_an_end_stops_where_nothing_can_follow(llm):
    """And goes on where something can."""
    vocab_size = llm.engine.model.vocab_size
    grammars = GrammarCompiler(llm.tokenizer, vocab_size, frozenset())
    for pattern, is_done in (("ab", True), ("ab*", False)):
        matcher = grammars.compile(StructuredOutputs(regex=pattern)).new()
        for token in llm.tokenizer("ab", add_special_tokens=False).input_ids:
            logits = torch.zeros(vocab_size)
            matcher.mask(logits)
            assert logits[token] == 0
            matcher.push(token)
        assert matcher.is_done is is_done
    logits = torch.zeros(vocab_size)
    matcher.mask(logits)
    allowed = logits.isfinite().nonzero().flatten().tolist()
    assert allowed and all(set(llm.tokenizer.decode([token])) == {"b"} for token in allowed)


def test_a_vocabulary_larger_than_the_tokenizers_is_masked_too(llm):
    logits = torch.zeros(5000)
    GrammarCompiler(llm.tokenizer, 5000, frozenset({0})).compile(StructuredOutputs(regex="a")).new().mask(logits)
    assert 0 < int(logits.isfinite().sum()) < 10
    assert not logits[4096:].isfinite().any()


def test_a_matcher_that_llguidance_gave_up_says_so_and_is_not_done(llm):
    """Its mask would allow the end alone, as if the output were complete."""
    matcher = GrammarCompiler(llm.tokenizer, 4096, frozenset({0})).compile(StructuredOutputs(regex="ab")).new()
    matcher.push(llm.tokenizer("x", add_special_tokens=False).input_ids[0])
    assert not matcher.is_done
    with pytest.raises(StructuredOutputError, match="any longer"):
        matcher.mask(torch.zeros(4096))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"json": {"type": "nothing"}}, "json cannot be enforced: Invalid type: nothing"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "json .* greater than maximum"),
        ({"json": {"$ref": "http://example.com/schema"}}, "json cannot be enforced"),
        ({"json": '{"type":'}, "json is not a JSON schema"),
        ({"json": "[1]"}, "json is not a JSON schema"),
        ({"json": {"enum": {1, 2}}}, "json is not a JSON schema"),
        ({"regex": "(("}, "regex cannot be enforced.*unclosed"),
        ({"regex": "(?=a)b"}, "regex cannot be enforced.*look-ahead"),
        ({"grammar": "start: nowhere"}, 'grammar cannot be enforced.*"nowhere"'),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_any_of_its_batch_starts(llm, wanted, message):
    before = llm.cache_stats()
    with pytest.raises(StructuredOutputError, match=message) as refused:
        llm.generate([PROMPT, PROMPT], [SamplingParams(), asked(**wanted)])
    assert "\n" not in str(refused.value)
    assert llm.cache_stats() == before
    assert texts(llm.generate([PROMPT], asked(choice=["yes"]))) == ["yes"]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"regex": "a", "json": {}},
        {"json_object": False},
        {"choice": []},
        {"choice": ["a", ""]},
        {"choice": "abc"},
        {"regex": ""},
        {"grammar": ""},
    ],
)
def test_a_form_is_exactly_one_and_not_empty(wanted):
    with pytest.raises(StructuredOutputError):
        StructuredOutputs(**wanted)


def test_an_empty_schema_is_any_json(llm):
    matcher = GrammarCompiler(llm.tokenizer, 4096, frozenset({0})).compile(StructuredOutputs(json={})).new()
    for token in llm.tokenizer('{"a": [1, true]}', add_special_tokens=False).input_ids:
        logits = torch.zeros(4096)
        matcher.mask(logits)
        assert logits[token] == 0
        matcher.push(token)
    assert matcher.is_done


def test_a_tokenizer_is_needed():
    with (
        LLM(skip_tokenizer_init=True, kv_cache_memory_bytes=16 << 20, num_threads=1) as llm,
        pytest.raises(TokenizerRequiredError),
    ):
        llm.generate([[5, 6, 7]], asked(regex="a"))


def test_without_llguidance_the_error_names_the_extra(monkeypatch):
    with LLM(kv_cache_memory_bytes=16 << 20, num_threads=1) as llm:
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(RequestError, match=r"pagoda-kv\[structured\]"):
            llm.generate([PROMPT], asked(regex="a"))
        assert llm.generate([PROMPT], SamplingParams(max_tokens=2))


@pytest.mark.parametrize(
    "wanted",
    [
        {"json": {"type": "object", "description": "x" * MAX_SOURCE_LENGTH}},
        {"json": '{"description": "' + "x" * MAX_SOURCE_LENGTH + '"}'},
        {"regex": "x" * (MAX_SOURCE_LENGTH + 1)},
        {"choice": ["x" * 60] * 5000},
        {"grammar": "start: " + '"x" ' * (MAX_SOURCE_LENGTH // 4)},
    ],
    ids=lambda wanted: next(iter(wanted)),
)
def test_what_takes_long_to_compile_is_refused(llm: LLM, wanted: dict[str, Any]) -> None:
    with pytest.raises(StructuredOutputError, match=f"^{next(iter(wanted))} has .* of at most {MAX_SOURCE_LENGTH}"):
        llm.grammars.compile(StructuredOutputs(**wanted))


def test_a_schema_that_nests_too_deep_is_a_named_error(llm: LLM) -> None:
    with pytest.raises(StructuredOutputError, match="json is not a JSON schema"):
        llm.grammars.compile(StructuredOutputs(json="[" * 100_000))
