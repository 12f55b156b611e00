"""What the templates of each family write for calls is read back as these calls, however it comes, wherever it ends."""

from __future__ import annotations

import json

import pytest

from pagoda.server.replies.dialects import find_dialect
from pagoda.server.replies.pieces import Text, ToolCall
from pagoda.server.replies.reader import Terms
from server.replies.families import CALLS, FAMILIES, TOOLS, Family, calls_in, read

FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
IS_CALL = '{"name": "tide", "arguments": {"place": "Deal"}}'
IS_NO_CALL = ('{"name": "rain", "arguments": {}}', '{"name": "tide"}', '{"arguments": {}, "x": 1}', "```json\n[1]\n```")
# Of every family's marks, the beginning.
MARKUP = ("<tool", "<fun", "<par", "<arg", "[TOOL", "<|", "<\uff5c", "```", '{"')


@FAMILY
def test_the_dialect_is_known_by_the_template(family: Family) -> None:
    assert find_dialect(family.template) is family.dialect


@FAMILY
@pytest.mark.parametrize("calls", [CALLS[:1], CALLS[1:], CALLS, (("tide", {}),)], ids=["one", "short", "two", "bare"])
def test_calls_are_read_back(family: Family, calls: tuple) -> None:
    if len(calls) > family.most_calls:
        pytest.skip("the template writes one call at a time")
    prompt, text = family.reply(calls)
    style = family.style(prompt)
    assert calls_in(read(text, style)) == calls
    whole = read(text, style)
    assert all(read(text, style, size=size) == whole for size in (1, 2, 3, 5, 7, 11))


@FAMILY
def test_text_and_thoughts_keep_their_order(family: Family) -> None:
    prompt, text = family.reply(CALLS[1:])
    style = family.style(prompt)
    if style.thoughts is not None or family.dialect.is_bare or family.dialect.name == "harmony":
        pytest.skip("a call stands alone, or text in a channel")
    blocks = read("Let me see. " + text, style)
    assert blocks[0] == Text("Let me see. ")
    assert calls_in(blocks) == CALLS[1:]


@FAMILY
def test_what_is_cut_off_leaves_no_markup(family: Family) -> None:
    """Wherever: the whole calls are there, and the rest of the last one is nowhere."""
    calls = CALLS[1:] + CALLS[1:]
    prompt, text = family.reply(calls[: family.most_calls])
    style = family.style(prompt)
    # What a template writes after the calls is the end of the turn, which is no part of a reply.
    text = text[: max(text.rfind(mark) + len(mark) for mark in (*family.dialect.marks, "}", "}]"))]
    counts = []
    for end in range(len(text) + 1):
        blocks = read(text[:end], style, is_cut=True)
        said = "".join(block.text for block in blocks if isinstance(block, Text))
        assert not any(mark in said for mark in MARKUP), (text[:end], said)
        assert read(text[:end], style, size=1, is_cut=True) == blocks
        found = calls_in(blocks)
        assert found == calls[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert set(counts) == set(range(family.most_calls + 1))


@FAMILY
def test_a_call_that_is_forced_is_json_in_every_dialect(family: Family) -> None:
    prompt, _ = family.reply(CALLS[:1])
    style = family.style(prompt)
    terms = Terms(tools=TOOLS, is_forced=True, is_form=True)
    name, arguments = CALLS[0]
    text = json.dumps({"name": name, "arguments": arguments})
    assert calls_in(read(text, style, terms)) == calls_in(read(text, style, terms, size=1)) == CALLS[:1]
    for end in range(len(text) - 1):
        assert read(text[:end], style, terms, is_cut=True) == read(text[:end], style, terms, 1, True) == []
    # Its arguments are all there.
    assert calls_in(read(text[:-1], style, terms, is_cut=True)) == CALLS[:1]


@FAMILY
def test_an_answer_that_is_nothing_but_a_call_is_one(family: Family) -> None:
    style = family.style(family.render(True))
    end = style.thoughts.end if style.is_thinking and style.thoughts is not None else ""
    for text in (IS_CALL, f"```json\n{IS_CALL}\n```\n", f"[{IS_CALL}]"):
        blocks = read(end + text, style)
        assert [name for name, _ in calls_in(blocks)] == ["tide"]
        assert len(blocks) == 1
        assert read(end + text, style, size=1) == blocks
    for text in IS_NO_CALL:
        assert read(end + text, style, size=1) == [Text(text)]


@FAMILY
def test_ids_are_those_that_templates_take(family: Family) -> None:
    prompt, text = family.reply((CALLS[1:] * 2)[: family.most_calls])
    ids = [block.call_id for block in read(text, family.style(prompt)) if isinstance(block, ToolCall)]
    assert len(set(ids)) == family.most_calls
    match family.dialect.name:
        case "mistral":
            assert all(each.isalnum() and len(each) == 9 for each in ids)
        case "kimi":
            assert ids == ["functions.tide:0", "functions.tide:1"]
        case _:
            assert all(each.startswith("call_") for each in ids)
