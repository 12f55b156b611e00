"""`LLM.chat` on the embedded model: prompts are those of transformers, and what is no conversation is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from pagoda import LLM, SamplingParams
from pagoda.errors import ChatTemplateError, EngineClosedError, PromptTooLongError, RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
TALK = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "By the sea. "}]
TOOLS = [{"type": "function", "function": {"name": "find", "description": "", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(kv_cache_memory_bytes=16 << 20, num_threads=1) as llm:
        yield llm


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"tools": TOOLS},
        {"chat_template": "{% for m in messages %}{{ m.role }} {{ mood }} {{ m.content }}\n{% endfor %}"}
        | {"chat_template_kwargs": {"mood": "gladly"}},
    ],
)
def test_the_prompt_is_that_of_transformers(llm, options):
    given = {"add_generation_prompt": True, **options}
    text = llm.tokenizer.apply_chat_template(TALK, tokenize=False, **given, **given.pop("chat_template_kwargs", {}))
    expected = llm.tokenizer(text, add_special_tokens=False).input_ids
    assert llm.chat(TALK, GREEDY, **options)[0].prompt_token_ids == expected == llm.chat_prompt(TALK, **options)
    assert asyncio.run(llm.chat_async(TALK, GREEDY, **options))[0].prompt_token_ids == expected


def test_parts_read_as_their_text(llm):
    parts = [{"type": "text", "text": "Where is"}, {"type": "text", "text": "it?"}]
    in_parts, in_one = ([{"role": "user", "content": content}] for content in (parts, "Where is\nit?"))
    assert llm.chat_prompt(in_parts) == llm.chat_prompt(in_one)


def test_calls_without_content_are_a_message(llm):
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}
    messages = [*TALK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert "find" in llm.tokenizer.decode(llm.chat_prompt(messages, tools=TOOLS))


def test_several_conversations_are_answered_in_order(llm):
    first, second = llm.chat([TALK, TALK[:1]], GREEDY, use_tqdm=False)
    assert first.prompt_token_ids == llm.chat_prompt(TALK)
    assert second.prompt_token_ids == llm.chat_prompt(TALK[:1])


@pytest.mark.parametrize("messages", ["Hello", None, [], [[]], {"role": "user", "content": "Hi"}, [{"content": "Hi"}]])
def test_what_is_no_conversation_is_refused(llm, messages):
    with pytest.raises(RequestError, match="give a list of"):
        llm.chat(messages, GREEDY)
    with pytest.raises(RequestError, match="give a list of"):
        asyncio.run(llm.chat_async(messages, GREEDY))


def test_what_the_template_refuses_is_refused(llm):
    with pytest.raises(ChatTemplateError, match="refuses this conversation: no"):
        llm.chat(TALK, GREEDY, chat_template="{{ raise_exception('no') }}")


def test_a_conversation_beyond_the_context_is_too_long(llm):
    with pytest.raises(PromptTooLongError):
        llm.chat([{"role": "user", "content": "word " * 100_000}], GREEDY)


def test_an_option_that_there_is_not_is_named(llm):
    with pytest.raises(TypeError, match="mm_processor_kwargs"):
        llm.chat(TALK, GREEDY, mm_processor_kwargs={})


def test_a_closed_engine_says_so():
    llm = LLM(kv_cache_memory_bytes=16 << 20, num_threads=1)
    llm.close()
    with pytest.raises(EngineClosedError):
        llm.chat(TALK, GREEDY)
