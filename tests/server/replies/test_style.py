"""Marks that are special tokens stand in the text that is read, and in no other."""

from __future__ import annotations

import pytest
from transformers import AddedToken, AutoTokenizer

from pagoda.llm import EMBEDDED_MODEL
from pagoda.server.replies.dialects import LLAMA3, MISTRAL_NAMES
from pagoda.server.replies.pieces import Text, ToolCall
from pagoda.server.replies.style import style_of
from pagoda.text import TextStream
from server.replies.families import read

TEMPLATE = "{{ tools }}[TOOL_CALLS][ARGS]<think></think>"
TEXT = '</think>Let me see.[OTHER][TOOL_CALLS]weather[ARGS]{"place": "Dover"}<|endoftext|>'


@pytest.mark.parametrize("is_special", [True, False])
def test_calls_are_read_whether_their_marks_are_special_or_not(is_special: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    marks = [AddedToken(each, special=is_special) for each in ("[TOOL_CALLS]", "[ARGS]", "</think>")]
    tokenizer.add_tokens([*marks, AddedToken("[OTHER]", special=True)])
    style = style_of(TEMPLATE, "Hello<think>\n", tokenizer)
    assert (style.dialect, style.is_thinking) == (MISTRAL_NAMES, True)
    assert set(style.hidden) == ({"[TOOL_CALLS]", "[ARGS]", "</think>"} if is_special else set())
    assert len(style.shown_tokens) == len(style.hidden)
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    stream = TextStream(tokenizer, tokenizer.encode("[OTHER]Hello"), shown=style.shown_tokens)
    for token in tokens:
        stream.push(token)
    stream.finish()
    assert stream.text == TEXT.replace("[OTHER]", "").replace("<|endoftext|>", "")
    assert read(stream.text, style) == [Text("Let me see."), ToolCall("weather", '{"place": "Dover"}')]
    assert style.num_thought_tokens(tokens) == 1
    assert style.num_thought_tokens(tokens[1:]) == len(tokens) - 1


def test_a_tokenizer_without_the_marks_needs_none() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    style = style_of("<|python_tag|> {{ '<think>' '</think>' }}", "<think>\n\n</think>\n\n", tokenizer)
    assert (style.dialect, style.is_thinking, style.hidden) == (LLAMA3, False, ())
    assert style.num_thought_tokens([1, 2, 3]) == 0
