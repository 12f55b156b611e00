"""The events of each API for a reply with calls: what clients put together of them is what was written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from pagoda.engine.request import FinishReason, RequestMetrics
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.server.anthropic.schema import MessagesBody
from pagoda.server.anthropic.writer import MessageEvents, MessageShape
from pagoda.server.asked.conversation import Conversation
from pagoda.server.asked.fingerprint import Fingerprint
from pagoda.server.openai.chat_writer import SampleDeltas
from pagoda.server.openai.responses_schema import ResponseBody
from pagoda.server.openai.responses_writer import ResponseShape, ResponseWriter
from pagoda.server.replies.dialects import HERMES
from pagoda.server.replies.reader import ReplyReader, Terms
from pagoda.server.replies.style import ReplyStyle

STYLE = ReplyStyle(HERMES)
TERMS = Terms(tools=[{"type": "function", "function": {"name": "weather"}}])
ARGUMENTS = '{"place": "Dover", "note": "</tool_call>"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
WHOLE, CUT = "Let me see. " + CALL + CALL, ("Let me see. " + CALL + CALL)[:-30]


def chunks_of(text: str, reason: FinishReason, size: int = 5) -> list[StreamChunk]:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return [*(StreamChunk(0, piece, [1], None, None) for piece in pieces), StreamChunk(0, "", [], reason, None)]


@dataclass
class Told:
    """An answer whose chunks are told one by one."""

    text: str
    reason: FinishReason
    jobs: tuple[Any, ...] = ()

    @property
    def outputs(self) -> list[RequestOutput]:
        sample = CompletionOutput(0, self.text, [1], self.reason, None, None, None)
        return [RequestOutput("r", None, [1], 0, [sample], RequestMetrics(arrival=0.0))]

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, StreamChunk]]]:
        for chunk in chunks_of(self.text, self.reason):
            yield [(0, chunk)]


def events_of(lines: AsyncIterator[bytes]) -> list[dict[str, Any]]:
    async def gather() -> bytes:
        return b"".join([line async for line in lines])

    text = asyncio.run(gather()).decode()
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize(
    ("text", "reason", "end"),
    [
        (WHOLE, FinishReason.STOP, "tool_calls"),
        (CUT, FinishReason.LENGTH, "length"),
        (WHOLE, FinishReason.LENGTH, "length"),
        ("Let me see. ", FinishReason.STOP, "stop"),
    ],
)
def test_deltas_of_chats(text: str, reason: FinishReason, end: str) -> None:
    writer = SampleDeltas(0, ReplyReader(STYLE, TERMS))
    choices = [choice for chunk in chunks_of(text, reason) for choice in writer.of(chunk, None, {})]
    assert choices[-1]["finish_reason"] == end
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Let me see. "
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    first = [call for call in calls if "id" in call]
    assert [call["index"] for call in first] == list(range(text.count("<tool_call>\n")))
    assert all(
        call["function"] == {"name": "weather", "arguments": ""} and call["type"] == "function" for call in first
    )
    written = ["".join(c["function"]["arguments"] for c in calls if c["index"] == index) for index in range(len(first))]
    assert written[:1] == [ARGUMENTS][: len(first)]
    assert all(ARGUMENTS.startswith(each) for each in written)
    assert len(calls) > 5 * len(first) or not first


@pytest.mark.parametrize(
    ("text", "reason", "end"), [(WHOLE, FinishReason.STOP, "tool_use"), (CUT, FinishReason.LENGTH, "max_tokens")]
)
def test_events_of_messages(text: str, reason: FinishReason, end: str) -> None:
    body = MessagesBody.model_validate({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]})
    shape = MessageShape("msg_1", body, STYLE, 100, lambda _: None)
    events = events_of(MessageEvents(shape, ReplyReader(STYLE, TERMS)).all(Told(text, reason)))
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use", "tool_use"]
    assert starts[1]["input"] == {}
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert "".join(event["delta"]["text"] for event in deltas if event["index"] == 0) == "Let me see. "
    written = [event["delta"]["partial_json"] for event in deltas if event["index"] == 1]
    assert "".join(written) == ARGUMENTS
    assert len(written) > 3
    kinds = [(event["type"], event["index"]) for event in events if "index" in event]
    assert kinds == sorted(kinds, key=lambda kind: kind[1])
    assert [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"] == [end]


@pytest.mark.parametrize(
    ("text", "reason", "end"), [(WHOLE, FinishReason.STOP, "completed"), (CUT, FinishReason.LENGTH, "incomplete")]
)
def test_events_of_responses(text: str, reason: FinishReason, end: str) -> None:
    body = ResponseBody.model_validate({"model": "m", "input": "Hi"})
    conversation = Conversation(())
    shape = ResponseShape("resp_1", 0, body, conversation, Fingerprint.of(conversation, model="m"), "t", STYLE)
    kept: list[Any] = []
    writer = ResponseWriter(
        shape, ReplyReader(STYLE, TERMS), lambda *_: [], lambda _: None, lambda *answer: kept.append(answer)
    )
    events = events_of(writer.events(Told(text, reason)))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == f"response.{end}"
    message, first, second = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "Let me see. "
    assert (first["arguments"], first["status"]) == (ARGUMENTS, "completed")
    assert ARGUMENTS.startswith(second["arguments"])
    assert second["status"] == end
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    written = [event["delta"] for event in deltas if event["item_id"] == first["id"]]
    assert "".join(written) == ARGUMENTS
    assert len(written) > 3
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in done] == [ARGUMENTS] * (2 if end == "completed" else 1)
    assert len(kept[0][1][0].more["tool_calls"]) == len(done)
