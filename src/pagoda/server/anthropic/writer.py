"""What a message looks like, and the events that tell how it comes to be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagoda.engine.request import FinishReason
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.server import sse
from pagoda.server.answer import Answer
from pagoda.server.anthropic.prompt import TTL_SECONDS
from pagoda.server.anthropic.schema import MessagesBody
from pagoda.server.errors import error_body
from pagoda.server.record import Record
from pagoda.server.tools import Pieces, ToolCall, ToolParser


@dataclass(frozen=True)
class MessageShape:
    """What the message of one call looks like."""

    message_id: str
    body: MessagesBody
    max_model_len: int
    diagnose: Callable[[Record], dict[str, Any] | None]

    def message(self, content: Sequence[dict[str, Any]], record: Record) -> dict[str, Any]:
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
            "usage": usage(record),
        }

    def stop(self, sample: CompletionOutput, output: RequestOutput, called: bool) -> dict[str, Any]:
        """Why it ended."""
        sequence = sample.stop_reason if isinstance(sample.stop_reason, str) else None
        if called:
            reason = "tool_use"
        elif sequence is not None:
            reason = "stop_sequence"
        elif sample.finish_reason is FinishReason.LENGTH:
            is_full = len(output.prompt_token_ids) + len(sample.token_ids) >= self.max_model_len
            is_wanted = len(sample.token_ids) >= self.body.max_tokens
            reason = "model_context_window_exceeded" if is_full and not is_wanted else "max_tokens"
        else:
            reason = "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}


@dataclass
class MessageEvents:
    """Writes the events of one answer: blocks begin and end as text and calls come."""

    shape: MessageShape
    parser: ToolParser | None
    _index: int = 0
    _is_open: bool = False
    _called: bool = False
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
        stop = self.shape.stop(output.outputs[0], output, self._called)
        self._say("message_delta", delta=stop, usage=usage(Record.of(answer.requests)))
        self._say("message_stop")
        yield self._taken()

    def beat(self) -> bytes:
        """That the answer is still being made."""
        return sse.named({"type": "ping"})

    def _begin(self, answer: Answer) -> None:
        self._say("message_start", message=self.shape.message((), Record.of(answer.requests)))
        self._say("ping")

    def _add(self, chunk: StreamChunk) -> None:
        is_last = chunk.finish_reason is not None
        pieces = Pieces(chunk.text) if self.parser is None else self.parser.push(chunk.text, is_last)
        if pieces.text:
            if not self._is_open:
                self._open({"type": "text", "text": "", "citations": None})
            self._delta({"type": "text_delta", "text": pieces.text})
        for call in pieces.calls:
            self._close()
            self._called = True
            self._open({**_tool_use(call), "input": {}})
            self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            self._close()

    def _open(self, block: dict[str, Any]) -> None:
        self._say("content_block_start", index=self._index, content_block=block)
        self._is_open = True

    def _delta(self, delta: dict[str, Any]) -> None:
        self._say("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> None:
        if self._is_open:
            self._say("content_block_stop", index=self._index)
            self._index += 1
            self._is_open = False

    def _say(self, kind: str, **fields: Any) -> None:
        self._lines.append(sse.named({"type": kind, **fields}))

    def _taken(self) -> bytes:
        lines, self._lines = self._lines, []
        return b"".join(lines)


@dataclass(frozen=True)
class LateError:
    """Writes an error after the first event."""

    request_id: str

    def __call__(self, error: HttpError) -> bytes:
        return sse.named(error_body("/v1/messages", error, self.request_id))


def usage(record: Record) -> dict[str, Any]:
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
        "output_tokens_details": {"thinking_tokens": 0},
        "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        "service_tier": "standard",
        "inference_geo": "not_available",
        "kv": record.kv(),
    }


def blocks(pieces: Pieces) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": pieces.text, "citations": None}] if pieces.text else []
    return text + [_tool_use(call) for call in pieces.calls]


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call.call_id,
        "name": call.name,
        "input": json.loads(call.arguments),
        "caller": {"type": "direct"},
    }
