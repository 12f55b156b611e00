"""Writes a chat completion, whole or as the deltas that tell how its samples come to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from pagoda.engine.request import FinishReason, TokenLogprobs
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.server.accepted.wire import json_response
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.openai.projection import chat_logprobs, finish_reason, identity_of, late_error, usage
from pagoda.server.openai.schema import ChatBody
from pagoda.server.replies.pieces import Arguments, Block, CallStart, Piece, Text, Thought, ToolCall
from pagoda.server.replies.reader import ReplyReader, Terms, is_cut, read_sample
from pagoda.server.replies.style import ReplyStyle


@dataclass(frozen=True)
class ChatShape:
    """What the answer to one call looks like, and what its samples may have in them."""

    call_id: str
    body: ChatBody
    style: ReplyStyle
    terms: Terms


class ChatWriter:
    """Writes one answer of any number of samples. Without `token_texts` there are no log-probabilities."""

    def __init__(self, shape: ChatShape, token_texts: TokenTexts | None) -> None:
        self._shape = shape
        self._token_texts = token_texts
        self._identity = identity_of(shape.call_id, "chat.completion", shape.body.model)

    async def whole(self, outputs: Sequence[RequestOutput], answer: Answer) -> Response:
        """Beside the event loop: log-probabilities of many samples take a while."""
        return await asyncio.to_thread(self._whole, outputs[0], answer)

    def beat(self) -> bytes:
        return sse.COMMENT

    def late_error(self, error: HttpError) -> bytes:
        return late_error(error)

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        identity = {**self._identity, "object": "chat.completion.chunk"}
        options, returns_ids = self._shape.body.stream_options, self._shape.body.return_token_ids
        wants_usage = options is not None and options.include_usage
        more = {"usage": None} if wants_usage else {}
        samples: dict[int, SampleDeltas] = {}
        async for news in answer:
            events = []
            for _, chunk in news:
                if chunk.index not in samples:
                    samples[chunk.index] = SampleDeltas(chunk.index, ReplyReader(self._shape.style, self._shape.terms))
                    events.append(sse.data({**identity, "choices": [samples[chunk.index].first()], **more}))
                ids = {"token_ids": chunk.token_ids} if returns_ids else {}
                choices = samples[chunk.index].of(chunk, self._logprobs(chunk.logprobs), ids)
                events += [sse.data({**identity, "choices": [choice], **more}) for choice in choices]
            yield b"".join(events)
        if wants_usage:
            output = answer.outputs[0]
            assert output is not None
            thinking = [sample for sample in output.outputs if samples[sample.index].has_thought]
            yield sse.data({**identity, "choices": [], "usage": self._usage(answer, thinking)})
        yield sse.DONE

    def _whole(self, output: RequestOutput, answer: Answer) -> Response:
        pairs = [(sample, read_sample(sample, self._shape.style, self._shape.terms)) for sample in output.outputs]
        thinking = [sample for sample, blocks in pairs if any(isinstance(block, Thought) for block in blocks)]
        return json_response(
            {
                **self._identity,
                "choices": [self._choice(sample, blocks) for sample, blocks in pairs],
                "usage": self._usage(answer, thinking),
                "service_tier": "default",
            }
        )

    def _usage(self, answer: Answer, thinking: Sequence[CompletionOutput]) -> dict[str, Any]:
        """`thinking` are the samples that begin with a thought."""
        num_thought_tokens = sum(self._shape.style.num_thought_tokens(sample.token_ids) for sample in thinking)
        return usage(Record.of(answer.jobs), self._shape.body.prompt_cache_options, num_thought_tokens)

    def _choice(self, sample: CompletionOutput, blocks: list[Block]) -> dict[str, Any]:
        num_calls = sum(isinstance(block, ToolCall) for block in blocks)
        return {
            "index": sample.index,
            "message": message_of(blocks),
            "logprobs": self._logprobs(sample.logprobs),
            "finish_reason": end_of(sample.finish_reason, num_calls),
            "stop_reason": sample.stop_reason,
            **({"token_ids": sample.token_ids} if self._shape.body.return_token_ids else {}),
        }

    def _logprobs(self, logprobs: list[TokenLogprobs] | None) -> dict[str, Any] | None:
        if logprobs is None or self._token_texts is None:
            return None
        return chat_logprobs(logprobs, self._token_texts, self._shape.body.top_logprobs or 0)


class SampleDeltas:
    """The deltas of one sample."""

    def __init__(self, index: int, reader: ReplyReader) -> None:
        self._index = index
        self._reader = reader
        self._num_begun = 0

    @property
    def has_thought(self) -> bool:
        return self._reader.has_thought

    def first(self) -> dict[str, Any]:
        return self._choice({"role": "assistant", "content": "", "refusal": None})

    def of(self, chunk: StreamChunk, logprobs: dict[str, Any] | None, more: dict[str, Any]) -> list[dict[str, Any]]:
        """What a chunk adds: thoughts, text, calls, the end. Its `logprobs`, and `more`, stand in the first of them."""
        reason = chunk.finish_reason
        pieces = self._reader.push(chunk.text, reason is not None, is_cut(reason, chunk.stop_reason))
        deltas = [delta for piece in pieces for delta in self._deltas(piece)]
        if (logprobs or more) and (not deltas or "content" not in deltas[0]):
            deltas.insert(0, {"content": ""})
        choices = [self._choice(delta) for delta in deltas]
        if logprobs or more:
            choices[0] |= {"logprobs": logprobs, **more}
        if reason is not None:
            choices.append(self._choice({}) | {"finish_reason": end_of(reason, self._reader.num_calls)})
        return choices

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        match piece:
            case Text(text):
                return [{"content": text}]
            case Thought(text):
                return [_thought(text)]
            case CallStart():
                self._num_begun += 1
                call = _tool_call(ToolCall(piece.name, "", piece.call_id))
                return [{"tool_calls": [{"index": self._num_begun - 1, **call}]}]
            case Arguments(text):
                return [{"tool_calls": [{"index": self._num_begun - 1, "function": {"arguments": text}}]}]
        return []

    def _choice(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}


def message_of(blocks: list[Block]) -> dict[str, Any]:
    """A message has one text, and one thought if there is any, under the names of several servers."""
    text = "".join(block.text for block in blocks if isinstance(block, Text))
    thought = "\n".join(block.text for block in blocks if isinstance(block, Thought))
    calls = [_tool_call(block) for block in blocks if isinstance(block, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if thought:
        message |= _thought(thought)
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return message


def end_of(reason: FinishReason | None, num_calls: int) -> str | None:
    """Why a sample ended: calls are to be made, unless there may have been more to say."""
    return "tool_calls" if num_calls and reason is not FinishReason.LENGTH else finish_reason(reason)


def _thought(text: str) -> dict[str, Any]:
    return {"reasoning_content": text, "reasoning": text}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
