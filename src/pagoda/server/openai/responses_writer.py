"""Writes a response, whole or as the events that tell how it comes to be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from time import time
from typing import Any

from starlette.responses import Response

from pagoda.engine.request import FinishReason, TokenLogprobs
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.server.accepted.wire import json_response
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.asked.conversation import Conversation, Turn
from pagoda.server.asked.fingerprint import Fingerprint
from pagoda.server.ground.errors import error_body
from pagoda.server.ground.messages import new_id
from pagoda.server.openai.marks import TTL_SECONDS, Options, num_written
from pagoda.server.openai.responses_prompt import answer_turn
from pagoda.server.openai.responses_schema import NamedFunction, ResponseBody
from pagoda.server.replies.pieces import Arguments, CallEnd, CallStart, Piece, Text, Thought, ToolCall
from pagoda.server.replies.reader import ReplyReader, is_cut
from pagoda.server.replies.style import ReplyStyle


@dataclass(frozen=True)
class ResponseShape:
    """What one response looks like, but for what is generated."""

    response_id: str
    created: int
    body: ResponseBody
    conversation: Conversation
    fingerprint: Fingerprint
    tenant: str
    style: ReplyStyle

    def response(self, status: str, **more: Any) -> dict[str, Any]:
        body = self.body
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text is not None else {}
        tools = [tool.model_dump() for tool in body.tools or ()]
        choice = body.tool_choice
        options = body.prompt_cache_options
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "prompt_cache_retention": body.prompt_cache_retention,
            "prompt_cache_options": {
                "mode": options.mode if options else "implicit",
                "ttl": options.ttl if options else "30m",
                "comparison_response_id": options.comparison_response_id if options else None,
            },
            "prompt_cache_diagnostics": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice or "auto",
            "tools": tools,
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        } | more


@dataclass
class ResponseWriter:
    """Turns text as it comes into output items, and into the events that tell of them."""

    shape: ResponseShape
    reader: ReplyReader
    read_logprobs: Callable[[Sequence[TokenLogprobs] | None, int], list[dict[str, Any]]]
    diagnose: Callable[[Record], dict[str, Any] | None]
    keep: Callable[[dict[str, Any], tuple[Turn, ...]], None]
    _items: list[dict[str, Any]] = field(default_factory=list)
    _lines: list[bytes] = field(default_factory=list)
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    _sequence: int = 0
    _is_open: bool = False

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        for kind in ("created", "in_progress"):
            self._say(f"response.{kind}", response=self.shape.response("in_progress"))
        async for news in answer:
            for _, chunk in news:
                self.add(chunk)
            yield self._taken()
        output = answer.outputs[0]
        assert output is not None
        response = self.finish(output, answer)
        self._say(f"response.{response['status']}", response=response)
        yield self._taken()

    async def whole(self, outputs: Sequence[RequestOutput], answer: Answer) -> Response:
        self.add(outputs[0].outputs[0])
        return json_response(self.finish(outputs[0], answer))

    def beat(self) -> bytes:
        """That the response is still being made."""
        self._say("response.in_progress", response=self.shape.response("in_progress", output=self._items))
        return self._taken()

    def late_error(self, error: HttpError) -> bytes:
        """A response that failed after it had begun."""
        body = error_body("", error, "")["error"]
        failure = {"code": body["code"] or "server_error", "message": error.message}
        self._say("response.failed", response=self.shape.response("failed", output=self._items, error=failure))
        return self._taken()

    def add(self, news: StreamChunk | CompletionOutput) -> None:
        """More of the answer, or all of it."""
        reason = news.finish_reason
        self._logprobs += self.read_logprobs(news.logprobs, self.shape.body.top_logprobs or 0)
        for piece in self.reader.push(news.text, reason is not None, is_cut(reason, news.stop_reason)):
            self._add_piece(piece)
        if reason is not None:
            has_text = self._is_open and self._items[-1]["type"] == "message"
            if has_text if self._items else not self._is_prewarm:
                self._add_text("")
            self._close("incomplete" if reason is FinishReason.LENGTH else "completed")

    def _add_piece(self, piece: Piece) -> None:
        match piece:
            case Text(text):
                self._add_text(text)
            case Thought(text):
                self._add_thought(text)
            case CallStart():
                self._open_call(piece)
            case Arguments(text):
                self._items[-1]["arguments"] += text
                self._say("response.function_call_arguments.delta", **self._item_place, delta=text)
            case CallEnd(is_whole):
                self._close("completed" if is_whole else "incomplete")

    def finish(self, output: RequestOutput, answer: Answer) -> dict[str, Any]:
        """The whole response."""
        record = Record.of(answer.jobs)
        is_cut = output.outputs[0].finish_reason is FinishReason.LENGTH
        if self._is_prewarm:
            is_cut = False
        response = self.shape.response(
            "incomplete" if is_cut else "completed",
            output=self._items,
            completed_at=int(time()),
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            usage=usage(record, self.shape.body.prompt_cache_options, self._num_thought_tokens(output)),
            prompt_cache_diagnostics=self.diagnose(record),
        )
        self.keep(response, (self._turn,) if self._items else ())
        return response

    def _num_thought_tokens(self, output: RequestOutput) -> int:
        return self.shape.style.num_thought_tokens(output.outputs[0].token_ids) if self.reader.has_thought else 0

    @property
    def _is_prewarm(self) -> bool:
        options = self.shape.body.prompt_cache_options
        return options is not None and options.prewarm

    @property
    def _turn(self) -> Turn:
        """What was answered, for those that go on from it."""
        text, thought = self._contents("message"), self._contents("reasoning")
        calls = [
            ToolCall(item["name"], item["arguments"], item["call_id"])
            for item in self._items
            if item["type"] == "function_call" and item["status"] == "completed"
        ]
        turn = answer_turn(text, calls)
        return replace(turn, more={**turn.more, "reasoning_content": thought}) if thought else turn

    def _contents(self, kind: str) -> str:
        return "".join(item["content"][0]["text"] for item in self._items if item["type"] == kind)

    def _add_text(self, text: str) -> None:
        """Log-probabilities that came before, of what was no text, go along."""
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._open_as({"id": new_id("msg_"), "type": "message", "role": "assistant"}, part)
        part, logprobs = self._items[-1]["content"][0], self._logprobs
        self._logprobs = []
        part["text"] += text
        part["logprobs"] += logprobs
        if text or logprobs:
            self._say("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)

    def _add_thought(self, text: str) -> None:
        part = {"type": "reasoning_text", "text": ""}
        self._open_as({"id": new_id("rs_"), "type": "reasoning", "summary": []}, part)
        self._items[-1]["content"][0]["text"] += text
        self._say("response.reasoning_text.delta", **self._place, delta=text)

    def _open_as(self, item: dict[str, Any], part: dict[str, Any]) -> None:
        """Go on with an item of the same type, or begin one."""
        if self._is_open and self._items[-1]["type"] == item["type"]:
            return
        self._close()
        self._open({**item, "status": "in_progress", "content": []})
        self._items[-1]["content"] = [part]
        self._say("response.content_part.added", **self._place, part=part)

    def _open_call(self, call: CallStart) -> None:
        self._close()
        item = {"id": new_id("fc_"), "type": "function_call", "call_id": call.call_id, "name": call.name}
        self._open({**item, "arguments": "", "status": "in_progress"})

    def _open(self, item: dict[str, Any]) -> None:
        self._is_open = True
        self._items.append(item)
        self._say("response.output_item.added", output_index=self._index, item=item)

    def _close(self, status: str = "completed") -> None:
        """End the item that is open, if one is."""
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        item["status"] = status
        match item["type"]:
            case "function_call":
                if status == "completed":
                    fields = {"name": item["name"], "arguments": item["arguments"]}
                    self._say("response.function_call_arguments.done", **self._item_place, **fields)
            case "message":
                part = item["content"][0]
                texts = {"text": part["text"], "logprobs": part["logprobs"]}
                self._say("response.output_text.done", **self._place, **texts)
                self._say("response.content_part.done", **self._place, part=part)
            case "reasoning":
                part = item["content"][0]
                self._say("response.reasoning_text.done", **self._place, text=part["text"])
                self._say("response.content_part.done", **self._place, part=part)
        self._say("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self._items) - 1

    @property
    def _item_place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": self._index}

    @property
    def _place(self) -> dict[str, Any]:
        return {**self._item_place, "content_index": 0}

    def _say(self, kind: str, **fields: Any) -> None:
        self._lines.append(sse.named({"type": kind, "sequence_number": self._sequence, **fields}))
        self._sequence += 1

    def _taken(self) -> bytes:
        lines, self._lines = self._lines, []
        return b"".join(lines)


def usage(record: Record, options: Options, num_thought_tokens: int) -> dict[str, Any]:
    """Cached tokens are counted in the input's."""
    details: dict[str, Any] = {
        "cached_tokens": record.num_read,
        "cache_write_tokens": num_written(record, options),
    }
    if record.leases:
        details["cache_write_tokens_details"] = {
            "ttl_30m_tokens": record.num_written_for(TTL_SECONDS["30m"]),
            "ttl_12h_tokens": record.num_written_for(TTL_SECONDS["12h"]),
        }
    return {
        "input_tokens": record.num_prompt_tokens,
        "input_tokens_details": details,
        "output_tokens": record.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": num_thought_tokens},
        "total_tokens": record.num_prompt_tokens + record.num_output_tokens,
        "kv": record.kv(),
    }
