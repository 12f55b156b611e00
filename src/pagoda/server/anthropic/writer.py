"""Writes a message, whole or as the events that tell how it comes to be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from pagoda.engine.request import FinishReason
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.server.accepted.wire import json_response
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.anthropic.prompt import TTL_SECONDS
from pagoda.server.anthropic.schema import MessagesBody
from pagoda.server.ground.errors import error_body
from pagoda.server.replies.pieces import Arguments, Block, CallEnd, CallStart, Piece, Text, Thought, ToolCall
from pagoda.server.replies.reader import ReplyReader, Terms, is_cut, read_sample
from pagoda.server.replies.style import ReplyStyle

# Clients send it back with the thought; nobody here checks it.
SIGNATURE = "cGFnb2Rh"


@dataclass(frozen=True)
class MessageShape:
    """What the message of one call looks like."""

    message_id: str
    body: MessagesBody
    style: ReplyStyle
    max_model_len: int
    diagnose: Callable[[Record], dict[str, Any] | None]

    def message(self, content: Sequence[dict[str, Any]], record: Record, num_thought_tokens: int = 0) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.body.model,
            "content": list(content),
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "diagnostics": self.diagnose(record),
            "usage": usage(record, num_thought_tokens),
        }

    def stop(self, sample: CompletionOutput, output: RequestOutput, called: bool) -> dict[str, Any]:
        """Why it ended."""
        sequence = sample.stop_reason if isinstance(sample.stop_reason, str) else None
        if sample.finish_reason is FinishReason.LENGTH:
            is_full = len(output.prompt_token_ids) + len(sample.token_ids) >= self.max_model_len
            is_wanted = len(sample.token_ids) >= self.body.max_tokens
            reason = "model_context_window_exceeded" if is_full and not is_wanted else "max_tokens"
        elif called:
            reason = "tool_use"
        elif sequence is not None:
            reason = "stop_sequence"
        else:
            reason = "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}


class MessageWriter:
    """Writes one answer, whose sample may have in it what `terms` say."""

    def __init__(self, shape: MessageShape, terms: Terms, request_id: str) -> None:
        self._shape = shape
        self._terms = terms
        self._request_id = request_id

    def events(self, answer: Answer) -> AsyncIterator[bytes]:
        return MessageEvents(self._shape, ReplyReader(self._shape.style, self._terms)).all(answer)

    def beat(self) -> bytes:
        return sse.named({"type": "ping"})

    def late_error(self, error: HttpError) -> bytes:
        return sse.named(error_body("/v1/messages", error, self._request_id))

    async def whole(self, outputs: Sequence[RequestOutput], answer: Answer) -> Response:
        shape, sample = self._shape, outputs[0].outputs[0]
        blocks = read_sample(sample, shape.style, self._terms) if shape.body.max_tokens else []
        has_thought = any(isinstance(block, Thought) for block in blocks)
        num_thought_tokens = shape.style.num_thought_tokens(sample.token_ids) if has_thought else 0
        content = [content_of(block) for block in blocks]
        message = shape.message(content, Record.of(answer.jobs), num_thought_tokens)
        called = any(isinstance(block, ToolCall) for block in blocks)
        return json_response(message | shape.stop(sample, outputs[0], called))


@dataclass
class MessageEvents:
    """Writes the events of one answer: blocks begin and end as thoughts, text and calls come."""

    shape: MessageShape
    reader: ReplyReader
    _index: int = 0
    _open_type: str = ""
    _lines: list[bytes] = field(default_factory=list)

    async def all(self, answer: Answer) -> AsyncIterator[bytes]:
        is_begun = False
        async for news in answer:
            if news and not is_begun:
                is_begun = True
                self._begin(answer)
            for _, chunk in news:
                self._add(chunk)
            yield self._taken()
        output = answer.outputs[0]
        assert output is not None
        self._close()
        stop = self.shape.stop(output.outputs[0], output, self.reader.num_calls > 0)
        self._say("message_delta", delta=stop, usage=usage(Record.of(answer.jobs), self._num_thought_tokens(output)))
        self._say("message_stop")
        yield self._taken()

    def _num_thought_tokens(self, output: RequestOutput) -> int:
        return self.shape.style.num_thought_tokens(output.outputs[0].token_ids) if self.reader.has_thought else 0

    def _begin(self, answer: Answer) -> None:
        self._say("message_start", message=self.shape.message((), Record.of(answer.jobs)))
        self._say("ping")

    def _add(self, chunk: StreamChunk) -> None:
        reason = chunk.finish_reason
        for piece in self.reader.push(chunk.text, reason is not None, is_cut(reason, chunk.stop_reason)):
            self._add_piece(piece)

    def _add_piece(self, piece: Piece) -> None:
        match piece:
            case Text(text):
                self._open_as({"type": "text", "text": "", "citations": None})
                self._delta({"type": "text_delta", "text": text})
            case Thought(text):
                self._open_as({"type": "thinking", "thinking": "", "signature": ""})
                self._delta({"type": "thinking_delta", "thinking": text})
            case CallStart():
                self._close()
                self._open(_tool_use(ToolCall(piece.name, "{}", piece.call_id)))
            case Arguments(text):
                self._delta({"type": "input_json_delta", "partial_json": text})
            case CallEnd():
                self._close()

    def _open_as(self, block: dict[str, Any]) -> None:
        """Go on with a block of the same type, or begin one."""
        if self._open_type != block["type"]:
            self._close()
            self._open(block)

    def _open(self, block: dict[str, Any]) -> None:
        self._say("content_block_start", index=self._index, content_block=block)
        self._open_type = block["type"]

    def _delta(self, delta: dict[str, Any]) -> None:
        self._say("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> None:
        if self._open_type == "thinking":
            self._delta({"type": "signature_delta", "signature": SIGNATURE})
        if self._open_type:
            self._say("content_block_stop", index=self._index)
            self._index += 1
            self._open_type = ""

    def _say(self, kind: str, **fields: Any) -> None:
        self._lines.append(sse.named({"type": kind, **fields}))

    def _taken(self) -> bytes:
        lines, self._lines = self._lines, []
        return b"".join(lines)


def usage(record: Record, num_thought_tokens: int = 0) -> dict[str, Any]:
    """Cached tokens, read and written, are not counted among the input's."""
    return {
        "input_tokens": record.num_computed - record.num_written,
        "cache_read_input_tokens": record.num_read,
        "cache_creation_input_tokens": record.num_written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": record.num_written_for(TTL_SECONDS["5m"]),
            "ephemeral_1h_input_tokens": record.num_written_for(TTL_SECONDS["1h"]),
        },
        "output_tokens": record.num_output_tokens,
        "output_tokens_details": {"thinking_tokens": num_thought_tokens},
        "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        "service_tier": "standard",
        "inference_geo": "not_available",
        "kv": record.kv(),
    }


def content_of(block: Block) -> dict[str, Any]:
    """A block in the words of the API."""
    match block:
        case Text(text):
            return {"type": "text", "text": text, "citations": None}
        case Thought(text):
            return {"type": "thinking", "thinking": text, "signature": SIGNATURE}
        case ToolCall():
            return _tool_use(block)


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call.call_id,
        "name": call.name,
        "input": json.loads(call.arguments),
        "caller": {"type": "direct"},
    }
