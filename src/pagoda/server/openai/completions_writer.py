"""Writes completions, whole or as the chunks that tell how they come to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import Response

from pagoda.engine.request import TokenLogprobs
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.server.accepted.wire import json_response
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.backend.base import Texts
from pagoda.server.ground.messages import Job
from pagoda.server.openai.projection import completion_logprobs, finish_reason, identity_of, late_error, usage
from pagoda.server.openai.schema import CompletionBody
from pagoda.tokenizing import decode


class CompletionWriter:
    """Writes one answer. Without `token_texts` there are no log-probabilities."""

    def __init__(self, call_id: str, body: CompletionBody, texts: Texts, token_texts: TokenTexts | None) -> None:
        self._identity = identity_of(call_id, "text_completion", body.model)
        self._body = body
        self._texts = texts
        self._token_texts = token_texts

    async def whole(self, outputs: Sequence[RequestOutput], answer: Answer) -> Response:
        """Beside the event loop: log-probabilities of many samples take a while."""
        return await asyncio.to_thread(self._whole, outputs, answer)

    def beat(self) -> bytes:
        return sse.COMMENT

    def late_error(self, error: HttpError) -> bytes:
        return late_error(error)

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        lengths: dict[int, int] = {}  # characters sent of each choice
        options = self._body.stream_options
        wants_usage = options is not None and options.include_usage
        more = {"usage": None} if wants_usage else {}
        async for news in answer:
            events = []
            for index, chunk in news:
                number = self._number(index, chunk)
                choice = self._choice(number, answer.jobs[index], chunk, lengths.get(number))
                lengths[number] = lengths.get(number, 0) + len(choice["text"])
                events.append(sse.data({**self._identity, "choices": [choice], **more}))
            yield b"".join(events)
        if wants_usage:
            yield sse.data({**self._identity, "choices": [], "usage": usage(Record.of(answer.jobs))})
        yield sse.DONE

    def _whole(self, outputs: Sequence[RequestOutput], answer: Answer) -> Response:
        choices = [
            self._choice(self._number(index, sample), answer.jobs[index], sample)
            for index, output in enumerate(outputs)
            for sample in output.outputs
        ]
        return json_response({**self._identity, "choices": choices, "usage": usage(Record.of(answer.jobs))})

    def _number(self, index: int, news: CompletionOutput | StreamChunk) -> int:
        """Samples are counted over all prompts."""
        return index * (self._body.n or 1) + news.index

    def _choice(
        self, number: int, job: Job, news: CompletionOutput | StreamChunk, num_sent: int | None = None
    ) -> dict[str, Any]:
        """A choice, or more of one of which `num_sent` characters have been sent; the prompt comes first, if at all."""
        is_first = num_sent is None
        before = self._prompt_text(job) if self._body.echo and is_first else ""
        logprobs = self._logprobs(news.logprobs, news.token_ids, (num_sent or 0) + len(before))
        if job.prompt_logprobs is not None and is_first:
            echoed = self._logprobs([None, *job.prompt_logprobs], job.prompt, 0)
            logprobs = _joined(echoed, logprobs)
        ids = {"token_ids": list(news.token_ids)} if self._body.return_token_ids else {}
        if self._body.return_token_ids and is_first:
            ids["prompt_token_ids"] = job.prompt
        return {
            "index": number,
            "text": before + news.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(news.finish_reason),
            "stop_reason": news.stop_reason,
            **ids,
        }

    def _logprobs(
        self, logprobs: Sequence[TokenLogprobs | None] | None, token_ids: Sequence[int], offset: int
    ) -> dict[str, list[Any]] | None:
        if logprobs is None or self._token_texts is None:
            return None
        return completion_logprobs(logprobs, token_ids, self._token_texts, offset)

    def _prompt_text(self, job: Job) -> str:
        """The prompt as text, however it was given."""
        return decode(self._texts.need_tokenizer(), job.prompt) if job.text is None else job.text


def _joined(first: dict[str, list[Any]] | None, second: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}
