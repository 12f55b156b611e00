"""Pairs of requests as people send them, each with the one cause for which the second misses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any

import pytest

from pagoda.analysis.causes import MEANINGS
from pagoda.analysis.explain import BEHIND_ADVICE, LAST_ADVICE, Reuse, explain, find
from pagoda.analysis.prompt import Prompt, SectionKind
from pagoda.commands.request_file import RequestFiles
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.plain_tokenizer import PlainTokenizer, load_plain_tokenizer

RULES = "You are the keeper of a lighthouse. Answer in one sentence, and never of the war. "
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "day": {"type": "string"}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up {what}.",
            "parameters": PARAMETERS,
        },
    }
    for name, what in (("get_weather", "the weather"), ("get_tides", "when tides come"), ("find_ship", "a ship"))
]
# Shows thoughts after the last question only, and opens an answer with an empty one where it is told not to think.
THINKING_TEMPLATE = """
{%- set ns = namespace(last=-1) -%}
{%- for message in messages if message.role == 'user' -%}{%- set ns.last = messages.index(message) -%}{%- endfor -%}
{%- for message in messages -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.reasoning_content and loop.index0 > ns.last -%}
{{- '<think>' + message.reasoning_content + '</think>' -}}
{%- endif -%}
{{- message.content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think></think>' -}}{%- endif -%}
{%- endif -%}"""
DATED_TEMPLATE = (
    "Today Date: {{ date_string }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
)


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


TALK = [
    system(RULES),
    user("Where is the harbour?"),
    assistant("In the bay."),
    user("And the ships?"),
    assistant("Out."),
]
LOG = [f"On day {day} of the log the keeper saw {day + 7} sails and lit {day % 5} lamps.\n" for day in range(40)]
DOCUMENTS, REORDERED_DOCUMENTS = "".join(LOG), "".join([*LOG[20:], *LOG[:20]])
MORE_DOCUMENTS = DOCUMENTS.replace("keeper saw", "cook heard")
ASK = user("When do they come back?")
CALL = {"id": "call_8fa91c2b", "type": "function", "function": {"name": "get_tides", "arguments": '{"place": "x"}'}}


def tool_talk(arguments: str, result: str) -> list[dict[str, Any]]:
    call = {**CALL, "function": {**CALL["function"], "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": CALL["id"], "content": result}
    return [system(RULES), user("When is high tide?"), assistant("", tool_calls=[call]), answer, user("And low tide?")]


def edited_tool(**changes: Any) -> list[dict[str, Any]]:
    tools = deepcopy(TOOLS)
    tools[1]["function"] |= changes
    return tools


def dated(text: str) -> dict[str, Any]:
    return chat(system(f"{RULES}Current time: {text}."), ASK)


PAIRS: dict[str, tuple[str, Any, Any, SectionKind | None]] = {
    "time to the second": (
        "timestamp",
        dated("2026-11-26T20:09:25Z"),
        dated("2026-11-26T20:09:26Z"),
        SectionKind.SYSTEM,
    ),
    "date in words": (
        "timestamp",
        dated("Thursday, November 26, 2026"),
        dated("Friday, November 27, 2026"),
        SectionKind.SYSTEM,
    ),
    "seconds since 1970": ("timestamp", dated("1764187750"), dated("1764187811"), SectionKind.SYSTEM),
    "clock of twelve hours": ("timestamp", dated("9:59 AM"), dated("10:05 PM"), SectionKind.SYSTEM),
    "a date that the template writes": (
        "timestamp",
        chat(*TALK, ASK, chat_template_kwargs={"date_string": "26 Nov 2026"}),
        chat(*TALK, ASK, chat_template_kwargs={"date_string": "27 Nov 2026"}),
        SectionKind.MARKER,
    ),
    "session id": (
        "random_id",
        chat(system(f"{RULES}Session 8f14e45f-ceea-467f-a0e6-5e0e1f0d2b11."), ASK),
        chat(system(f"{RULES}Session c9f0f895-fb98-4d91-9f1a-8e2b3c4d5e6f."), ASK),
        SectionKind.SYSTEM,
    ),
    "short id in a message": (
        "random_id",
        chat(system(RULES), user("[req_8fa91c2b] Where is the harbour?"), ASK),
        chat(system(RULES), user("[req_71bc03de] Where is the harbour?"), ASK),
        SectionKind.MESSAGE,
    ),
    "counter of requests": (
        "counter",
        chat(system(f"Request #1041. {RULES}"), ASK),
        chat(system(f"Request #1042. {RULES}"), ASK),
        SectionKind.SYSTEM,
    ),
    "tools in another order": (
        "tools_reordered",
        chat(*TALK, ASK, tools=TOOLS),
        chat(*TALK, ASK, tools=TOOLS[::-1]),
        SectionKind.TOOLS,
    ),
    "a tool more": (
        "tool_added",
        chat(*TALK, ASK, tools=TOOLS[:2]),
        chat(*TALK, ASK, tools=TOOLS),
        SectionKind.TOOLS,
    ),
    "a tool less": (
        "tool_removed",
        chat(*TALK, ASK, tools=TOOLS),
        chat(*TALK, ASK, tools=TOOLS[1:]),
        SectionKind.TOOLS,
    ),
    "tools at all": ("tool_added", chat(*TALK, ASK), chat(*TALK, ASK, tools=TOOLS), SectionKind.TOOLS),
    "a tool with another description": (
        "tool_changed",
        chat(*TALK, ASK, tools=TOOLS),
        chat(*TALK, ASK, tools=edited_tool(description="Says when tides come and go.")),
        SectionKind.TOOLS,
    ),
    "a tool whose description has the date": (
        "timestamp",
        chat(*TALK, ASK, tools=edited_tool(description="Tides as of 2026-11-26.")),
        chat(*TALK, ASK, tools=edited_tool(description="Tides as of 2026-11-27.")),
        SectionKind.TOOLS,
    ),
    "a schema with its keys in another order": (
        "json_key_order",
        chat(*TALK, ASK, tools=TOOLS),
        chat(
            *TALK,
            ASK,
            tools=edited_tool(
                parameters={"type": "object", "properties": {"day": {"type": "string"}, "place": {"type": "string"}}}
            ),
        ),
        SectionKind.TOOLS,
    ),
    "a tool's answer printed with indents": (
        "json_whitespace",
        chat(*tool_talk('{"place": "x"}', json.dumps({"high": "4", "low": "9"}))),
        chat(*tool_talk('{"place": "x"}', json.dumps({"high": "4", "low": "9"}, indent=2))),
        SectionKind.MESSAGE,
    ),
    "a tool's answer with its keys in another order": (
        "json_key_order",
        chat(*tool_talk('{"place": "x"}', '{"high": "4", "low": "9"}')),
        chat(*tool_talk('{"place": "x"}', '{"low": "9", "high": "4"}')),
        SectionKind.MESSAGE,
    ),
    "arguments of a call in another order": (
        "json_key_order",
        chat(*tool_talk('{"place": "x", "day": "y"}', "4")),
        chat(*tool_talk('{"day": "y", "place": "x"}', "4")),
        SectionKind.MARKER,
    ),
    "a tool with a field more": (
        "tool_changed",
        chat(*TALK, ASK, tools=TOOLS),
        chat(*TALK, ASK, tools=edited_tool(strict=True)),
        SectionKind.TOOLS,
    ),
    "a schema that says what is required": (
        "tool_changed",
        chat(*TALK, ASK, tools=TOOLS),
        chat(*TALK, ASK, tools=edited_tool(parameters=PARAMETERS | {"required": ["place"]})),
        SectionKind.TOOLS,
    ),
    "a parameter more": (
        "tool_changed",
        chat(*TALK, ASK, tools=TOOLS),
        chat(
            *TALK,
            ASK,
            tools=edited_tool(
                parameters={"type": "object", "properties": PARAMETERS["properties"] | {"hour": {"type": "string"}}}
            ),
        ),
        SectionKind.TOOLS,
    ),
    "a schema with choices in another order": (
        "order_changed",
        chat(*TALK, ASK, tools=edited_tool(parameters={"enum": ["north", "south"]})),
        chat(*TALK, ASK, tools=edited_tool(parameters={"enum": ["south", "north"]})),
        SectionKind.TOOLS,
    ),
    "JSON that has grown": (
        "system_changed",
        chat(system(f'{RULES}[{{"id": 1}}]'), ASK),
        chat(system(f'{RULES}[{{"id": 1}}, {{"id": 2}}]'), ASK),
        SectionKind.SYSTEM,
    ),
    "a tool's answer with a row more": (
        "message_edited",
        chat(*tool_talk('{"place": "x"}', '[{"high": 4}]')),
        chat(*tool_talk('{"place": "x"}', '[{"high": 4}, {"high": 5}]')),
        SectionKind.MESSAGE,
    ),
    "a mark behind a source": (
        "message_edited",
        chat(system(RULES), user("See source [1]."), ASK),
        chat(system(RULES), user("See source [1],"), ASK),
        SectionKind.MESSAGE,
    ),
    "an exchange taken out of the middle": (
        "message_removed",
        chat(*TALK, ASK),
        chat(*TALK[:3], ASK),
        SectionKind.MESSAGE,
    ),
    "an exchange with a tool taken out of the middle": (
        "message_removed",
        chat(*TALK[:3], *tool_talk('{"place": "x"}', "4")[1:4], assistant("At four."), ASK),
        chat(*TALK[:3], ASK),
        SectionKind.MESSAGE,
    ),
    "exchanges cut out of the middle": (
        "context_compacted",
        chat(*TALK, ASK, assistant("At six."), user("And then?")),
        chat(*TALK[:3], user("And then?")),
        SectionKind.MESSAGE,
    ),
    "JSON with escapes": (
        "json_encoding",
        chat(system(RULES + json.dumps({"port": "Malmö"})), ASK),
        chat(system(RULES + json.dumps({"port": "Malmö"}, ensure_ascii=False)), ASK),
        SectionKind.SYSTEM,
    ),
    "a space at the end": (
        "trailing_whitespace",
        chat(system(RULES.strip()), ASK),
        chat(system(RULES), ASK),
        SectionKind.SYSTEM,
    ),
    "a line at the end of a message": (
        "trailing_whitespace",
        chat(system(RULES), user("Where is the harbour?"), ASK),
        chat(system(RULES), user("Where is the harbour?\n"), ASK),
        SectionKind.MESSAGE,
    ),
    "two spaces": (
        "whitespace",
        chat(system(RULES), ASK),
        chat(system(RULES.replace(". ", ".  ")), ASK),
        SectionKind.SYSTEM,
    ),
    "lines that end as on Windows": (
        "line_endings",
        chat(system("Be brief.\nBe kind.\nBe right."), ASK),
        chat(system("Be brief.\r\nBe kind.\r\nBe right."), ASK),
        SectionKind.SYSTEM,
    ),
    "accents composed and not": (
        "unicode_form",
        chat(system("You know Malm\u00f6 and its caf\u00e9s."), ASK),
        chat(system("You know Malmo\u0308 and its cafe\u0301s."), ASK),
        SectionKind.SYSTEM,
    ),
    "a space that does not break": (
        "invisible_characters",
        chat(system("You are 10 km from the shore, on a rock."), ASK),
        chat(system("You are 10\u00a0km from the shore, on a rock."), ASK),
        SectionKind.SYSTEM,
    ),
    "quotes of an editor": (
        "typographic_characters",
        chat(system('Don\'t answer in "quotes" at all.'), ASK),
        chat(system("Don\u2019t answer in \u201cquotes\u201d at all."), ASK),
        SectionKind.SYSTEM,
    ),
    "capitals": ("case_changed", chat(system(RULES), ASK), chat(system(RULES.upper()), ASK), SectionKind.SYSTEM),
    "documents in another order": (
        "order_changed",
        chat(system(RULES), user("Document: the sea.\nDocument: the land.\nWhich?")),
        chat(system(RULES), user("Document: the land.\nDocument: the sea.\nWhich?")),
        SectionKind.MESSAGE,
    ),
    "a set": (
        "order_changed",
        chat(system(f"{RULES}Speak of: ships, tides, lamps."), ASK),
        chat(system(f"{RULES}Speak of: tides, lamps, ships."), ASK),
        SectionKind.SYSTEM,
    ),
    "how long ago": (
        "timestamp",
        chat(system(f"{RULES}The lamp was lit 3 minutes ago."), ASK),
        chat(system(f"{RULES}The lamp was lit 14 minutes ago."), ASK),
        SectionKind.SYSTEM,
    ),
    "a digest of a commit": (
        "random_id",
        chat(system(f"{RULES}The log is at 3f2a9bc."), ASK),
        chat(system(f"{RULES}The log is at 91d2aef."), ASK),
        SectionKind.SYSTEM,
    ),
    "an id in a tool": (
        "random_id",
        chat(*TALK, ASK, tools=edited_tool(description="Tides, key 8f14e45fceea467f.")),
        chat(*TALK, ASK, tools=edited_tool(description="Tides, key c9f0f895fb984d91.")),
        SectionKind.TOOLS,
    ),
    "what is left of a budget": (
        "counter",
        chat(system(RULES), user("Token usage: 12034/200000"), ASK),
        chat(system(RULES), user("Token usage: 15234/200000"), ASK),
        SectionKind.MESSAGE,
    ),
    "a mark before all": (
        "invisible_characters",
        "\ufeffThe sea was calm and blue.",
        "The sea was calm and blue.",
        SectionKind.PROMPT,
    ),
    "tabs": ("whitespace", "if calm:\n    sail()", "if calm:\n\tsail()", SectionKind.PROMPT),
    "digits of another width": (
        "unicode_form",
        "Costs \uff11\uff12\uff13 crowns.",
        "Costs 123 crowns.",
        SectionKind.PROMPT,
    ),
    "another version": (
        "system_changed",
        chat(system(f"{RULES}The lamp is of version 1.2.30."), ASK),
        chat(system(f"{RULES}The lamp is of version 1.2.31."), ASK),
        SectionKind.SYSTEM,
    ),
    "another number": ("input_changed", "Write 3 poems of the sea.", "Write 4 poems of the sea.", SectionKind.PROMPT),
    "a renamed tool": (
        "tool_changed",
        chat(*TALK, ASK, tools=TOOLS),
        chat(*TALK, ASK, tools=edited_tool(name="get_all_tides")),
        SectionKind.TOOLS,
    ),
    "a reminder in the middle": (
        "message_inserted",
        chat(*TALK, ASK),
        chat(*TALK[:2], system("Be kind."), *TALK[2:], ASK),
        SectionKind.MARKER,
    ),
    "messages cut off at the front, without a system prompt": (
        "context_compacted",
        chat(*TALK[1:], ASK),
        chat(*TALK[3:], ASK),
        SectionKind.MESSAGE,
    ),
    "another system prompt": (
        "system_changed",
        chat(system(RULES), ASK),
        chat(system(RULES.replace("lighthouse", "windmill")), ASK),
        SectionKind.SYSTEM,
    ),
    "no system prompt": ("system_changed", chat(*TALK, ASK), chat(*TALK[1:], ASK), SectionKind.MARKER),
    "an edited question": (
        "message_edited",
        chat(*TALK, ASK),
        chat(TALK[0], user("Where is the church?"), *TALK[2:], ASK),
        SectionKind.MESSAGE,
    ),
    "messages cut off at the front": (
        "context_compacted",
        chat(*TALK, ASK),
        chat(TALK[0], *TALK[3:], ASK),
        SectionKind.MESSAGE,
    ),
    "messages summed up": (
        "context_compacted",
        chat(*TALK, ASK),
        chat(TALK[0], user("Summary: we spoke of the harbour."), *TALK[4:], ASK),
        SectionKind.MESSAGE,
    ),
    "a message put in before others": (
        "message_inserted",
        chat(*TALK, ASK),
        chat(*TALK[:3], user("Please be brief."), *TALK[3:], ASK),
        SectionKind.MESSAGE,
    ),
    "messages in another order": (
        "messages_reordered",
        chat(system(RULES), user("Document one."), user("Document two."), ASK),
        chat(system(RULES), user("Document two."), user("Document one."), ASK),
        SectionKind.MESSAGE,
    ),
    "another role": (
        "role_changed",
        chat(user(RULES), ASK),
        chat(assistant(RULES), ASK),
        SectionKind.MARKER,
    ),
    "another model": ("model_changed", chat(*TALK, ASK), {**chat(*TALK, ASK), "model": "n"}, None),
    "another salt": (
        "salt_changed",
        chat(*TALK, ASK, cache_salt="a"),
        chat(*TALK, ASK, cache_salt="b"),
        None,
    ),
    "a thought that the client left out": (
        "thinking_stripped",
        chat(system(RULES), ASK, assistant("<think>Let me see.</think>At noon."), ASK),
        chat(system(RULES), ASK, assistant("At noon."), ASK),
        SectionKind.MESSAGE,
    ),
    "a thought that the template left out": (
        "thinking_stripped",
        chat(ASK, assistant("At noon.", reasoning_content="Let me see."), {"role": "tool", "content": "4"}),
        chat(
            ASK, assistant("At noon.", reasoning_content="Let me see."), {"role": "tool", "content": "4"}, user("So?")
        ),
        SectionKind.MESSAGE,
    ),
    "an answer that was opened in another way": (
        "generation_prompt",
        chat(ASK, chat_template_kwargs={"enable_thinking": False}),
        chat(ASK, assistant("At noon."), ASK, chat_template_kwargs={"enable_thinking": False}),
        SectionKind.MESSAGE,
    ),
    "an effort": (
        "reasoning_effort_changed",
        chat(ASK, reasoning_effort="none"),
        chat(ASK, assistant("At noon."), ASK),
        SectionKind.MESSAGE,
    ),
    "other messages by Anthropic's API": (
        "timestamp",
        {"model": "m", "max_tokens": 9, "system": f"{RULES} It is 10:01.", "messages": [ASK]},
        {"model": "m", "max_tokens": 9, "system": f"{RULES} It is 10:02.", "messages": [ASK]},
        SectionKind.SYSTEM,
    ),
    "other input by the responses API": (
        "whitespace",
        {"model": "m", "instructions": RULES, "input": "Where is the harbour?"},
        {"model": "m", "instructions": RULES.replace(" ", "\n"), "input": "Where is the harbour?"},
        SectionKind.SYSTEM,
    ),
    "a prompt that ended with a space": (
        "trailing_whitespace",
        "The sea was calm and the answer is: ",
        "The sea was calm and the answer is: forty",
        SectionKind.PROMPT,
    ),
    "a prompt that ended inside of a word": (
        "tokenization_changed",
        "The sea was calm and the lightho",
        "The sea was calm and the lighthouse keeper slept",
        SectionKind.PROMPT,
    ),
    "another prompt": ("input_changed", "The sea was calm.", "A storm came up.", SectionKind.PROMPT),
    "token ids": ("input_changed", "[5, 6, 7, 8]", "[5, 6, 9, 8]", SectionKind.PROMPT),
    "a conversation that the client has rendered": (
        "template_changed",
        "<|im_start|>user\nWhere is the harbour?<|im_end|>",
        chat(user("Where is the harbour?")),
        SectionKind.PROMPT,
    ),
    "text instead of a conversation": ("input_changed", "A storm came up.", chat(ASK), SectionKind.PROMPT),
    "another document before the question": (
        "input_changed",
        "Document: the sea was calm.\nQuestion: why?",
        "Document: a storm came up.\nQuestion: why?",
        SectionKind.PROMPT,
    ),
}
TEMPLATES = {
    "a date that the template writes": DATED_TEMPLATE,
    "a thought that the template left out": THINKING_TEMPLATE,
    "an answer that was opened in another way": THINKING_TEMPLATE,
    "an effort": THINKING_TEMPLATE,
}
HARMLESS: dict[str, tuple[str, Any, Any]] = {
    "the same": ("none", chat(*TALK, ASK), chat(*TALK, ASK)),
    "a turn more": ("continued", chat(*TALK[:2]), chat(*TALK[:3], ASK)),
    "a turn less": ("none", chat(*TALK, ASK), chat(*TALK[:2])),
    "content in parts": (
        "none",
        chat(system(RULES), ASK),
        chat(system(RULES), user([{"type": "text", "text": ASK["content"]}])),  # type: ignore[arg-type]
    ),
    "the same in the words of two APIs": (
        "none",
        chat(system(RULES), ASK),
        {"model": "m", "max_tokens": 9, "system": RULES, "messages": [ASK]},
    ),
    "other ids of calls, which the template does not show": (
        "none",
        chat(*tool_talk('{"place": "x"}', "4")),
        json.loads(json.dumps(chat(*tool_talk('{"place": "x"}', "4"))).replace("call_8fa91c2b", "call_71bc03de")),
    ),
    "other sampling": ("none", chat(*TALK, ASK, temperature=0), chat(*TALK, ASK, temperature=1, seed=3)),
    "text": ("continued", "The sea was calm", "The sea was calm and blue"),
    "the same text": ("none", "The sea was calm", "The sea was calm"),
    "another key for routers": (
        "cache_key_changed",
        chat(*TALK, ASK, prompt_cache_key="a"),
        chat(*TALK, ASK, prompt_cache_key="b"),
    ),
    "an image that this model does not read": (
        "media_changed",
        chat(user([{"type": "image_url", "image_url": {"url": "data:,a"}}])),  # type: ignore[arg-type]
        chat(user([{"type": "image_url", "image_url": {"url": "data:,b"}}])),  # type: ignore[arg-type]
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> PlainTokenizer:
    loaded = load_plain_tokenizer(EMBEDDED_MODEL)
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def files(tokenizer: PlainTokenizer) -> Iterator[RequestFiles]:
    with closing(RequestFiles(tokenizer, 1 << 14)) as reader:
        yield reader


def read(files: RequestFiles, earlier: Any, later: Any) -> list[Prompt]:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in (earlier, later)]
    return files.read(texts, ["earlier", "later"])


def prompts_of(files: RequestFiles, tokenizer: PlainTokenizer, name: str) -> list[Prompt]:
    _, earlier, later, _ = PAIRS[name]
    if name not in TEMPLATES:
        return read(files, earlier, later)
    with closing(RequestFiles(tokenizer, 1 << 14, TEMPLATES[name])) as reader:
        return read(reader, earlier, later)


@pytest.mark.parametrize("name", PAIRS)
def test_each_pair_has_its_cause_and_section(files, tokenizer, name):
    cause, _, _, kind = PAIRS[name]
    finding = find(*prompts_of(files, tokenizer, name), read_tokens=0)
    assert (finding.cause, finding.section and finding.section.kind) == (cause, kind)
    assert finding.first_missed is not None


@pytest.mark.parametrize(
    ("earlier", "later", "advice"),
    [
        ([user("It is 10:01.")], [user("It is 10:02.")], LAST_ADVICE),
        ([user(f"{DOCUMENTS}It is 10:01.")], [user(f"{DOCUMENTS}It is 10:02.")], LAST_ADVICE),
        ([user(f"{DOCUMENTS}Where?")], [user(f"{MORE_DOCUMENTS}Who?")], LAST_ADVICE),
        ([user(f"[2026-11-26 10:00] {DOCUMENTS}")], [user(f"[2026-11-26 10:01] {DOCUMENTS}")], BEHIND_ADVICE),
        ([user(f"At 10:00: {DOCUMENTS}Where?")], [user(f"At 10:01: {DOCUMENTS}Who?")], BEHIND_ADVICE),
        ([user(f"Q: Where?\nDocs: {DOCUMENTS}")], [user(f"Q: Who is it?\nDocs: {DOCUMENTS}")], BEHIND_ADVICE),
        ([user(f"{DOCUMENTS}Where?")], [user(f"{REORDERED_DOCUMENTS}Who?")], MEANINGS["order_changed"].advice),
        ([user("Where?"), ASK], [user("Who?"), ASK], MEANINGS["message_edited"].advice),
    ],
)
def test_nothing_is_to_be_changed_where_what_changes_stands_last(files, earlier, later, advice):
    finding = find(*read(files, chat(system(RULES), *earlier), chat(system(RULES), *later)), read_tokens=0)
    assert explain(finding, Reuse(1, 0, 32)).advice == advice


@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_is_missed_where_nothing_differs(files, name):
    cause, earlier, later = HARMLESS[name]
    prompts = read(files, earlier, later)
    num_read = min(len(prompts[0].token_ids), len(prompts[1].token_ids) - 1)
    finding = find(*prompts, num_read)
    assert (finding.cause, finding.missed_tokens, finding.first_missed) == (cause, 0, None)
