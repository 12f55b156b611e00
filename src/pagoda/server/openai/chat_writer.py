"""What one sample of a chat completion looks like: whole, and as the deltas that tell how it comes to be."""

from __future__ import annotations

from typing import Any

from pagoda.engine.request import FinishReason
from pagoda.outputs import StreamChunk
from pagoda.server.openai.projection import finish_reason
from pagoda.server.replies.pieces import Arguments, Block, CallStart, Piece, Text, Thought, ToolCall
from pagoda.server.replies.reader import ReplyReader, is_cut


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


def _thought(text: str) -> dict[str, Any]:
    return {"reasoning_content": text, "reasoning": text}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
