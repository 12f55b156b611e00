"""`/v1/completions`: prompts of text or token ids, continued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pagoda.engine.request import TokenLogprobs
from pagoda.errors import HttpError
from pagoda.outputs import CompletionOutput, RequestOutput, StreamChunk
from pagoda.prompts import Prompt, ReadPrompt
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import ignore, json_response, origin_of, submit
from pagoda.server.answered import sse
from pagoda.server.answered.answer import Answer
from pagoda.server.answered.record import Record
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.asked.body import MOST_TOKENS
from pagoda.server.asked.forms import left_out
from pagoda.server.ground.messages import Call, Job, Work, new_id
from pagoda.server.openai.guided import guided_form, guided_param
from pagoda.server.openai.parameters import sampling_params
from pagoda.server.openai.projection import completion_logprobs, finish_reason, identity_of, late_error, usage
from pagoda.server.openai.schema import CompletionBody
from pagoda.tokenizing import decode

MAX_PROMPTS = 1024
MAX_ECHOED_LOGPROBS = 1 << 20  # of one call; about 200 MB


class Completions:
    """The handler, over one service."""

    def __init__(self, service: Service, texts: TokenTexts | None) -> None:
        self._service = service
        self._texts = texts

    async def create(self, body: CompletionBody, request: Request) -> Response:
        """Continue each prompt `n` times."""
        service = self._service
        service.check_model(body.model)
        prompts = _prompts(body.prompt)
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise HttpError(400, "best_of is not supported; leave it out, or give the value of n.", param="best_of")
        if body.stream_options is not None and not body.stream:
            raise HttpError(400, "stream_options needs stream to be true.", param="stream_options")
        echoed = body.logprobs if body.echo else None
        form = guided_form(body)
        ignore(request, left_out(form))
        params = sampling_params(
            body,
            service.backend.model.default_params,
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=echoed,
            structured_outputs=form,
        )
        origin = origin_of(request)
        service.check_room(origin.tenant, "prompt", len(prompts), len(prompts) * params.n)
        read = await service.read(self._read, prompts, "prompt", origin.tenant)
        _check_size(sum(len(each.token_ids) for each in read), echoed)
        constraint = await service.constraint(form, guided_param(body) or "", origin) if form else None
        call = Call(
            call_id=new_id("cmpl-"),
            origin=origin,
            works=[Work(each, params, constraint) for each in read],
            param="prompt",
            streams=bool(body.stream),
            cache_salt=body.cache_salt or "",
        )
        identity = identity_of(call.call_id, "text_completion", body.model)
        answer = submit(service, call, request)
        if body.stream:
            return sse.EventStream(answer, self._events(answer, body, identity), late_error)
        outputs = await sse.finish(answer, request)
        return await asyncio.to_thread(self._whole, outputs, answer, body, identity)

    def _read(self, prompts: list[Prompt]) -> list[ReadPrompt]:
        return [self._service.backend.texts.read(prompt) for prompt in prompts]

    def _whole(
        self, outputs: Sequence[RequestOutput], answer: Answer, body: CompletionBody, identity: dict[str, Any]
    ) -> Response:
        """Beside the event loop: log-probabilities of many samples take a while."""
        choices = [
            self._choice(index * (body.n or 1) + sample.index, answer.jobs[index], sample, body)
            for index, output in enumerate(outputs)
            for sample in output.outputs
        ]
        return json_response({**identity, "choices": choices, "usage": usage(Record.of(answer.jobs))})

    async def _events(self, answer: Answer, body: CompletionBody, identity: dict[str, Any]) -> AsyncIterator[bytes]:
        lengths: dict[int, int] = {}  # characters sent of each choice
        wants_usage = body.stream_options is not None and body.stream_options.include_usage
        more = {"usage": None} if wants_usage else {}
        async for news in answer:
            events = []
            for index, chunk in news:
                number = index * (body.n or 1) + chunk.index
                choice = self._choice(number, answer.jobs[index], chunk, body, lengths.get(number))
                lengths[number] = lengths.get(number, 0) + len(choice["text"])
                events.append(sse.data({**identity, "choices": [choice], **more}))
            yield b"".join(events)
        if wants_usage:
            yield sse.data({**identity, "choices": [], "usage": usage(Record.of(answer.jobs))})
        yield sse.DONE

    def _choice(
        self,
        number: int,
        job: Job,
        news: CompletionOutput | StreamChunk,
        body: CompletionBody,
        num_sent: int | None = None,
    ) -> dict[str, Any]:
        """A choice, or more of one of which `num_sent` characters have been sent; the prompt comes first, if at all."""
        is_first = num_sent is None
        before = self._prompt_text(job) if body.echo and is_first else ""
        logprobs = self._logprobs(news.logprobs, news.token_ids, (num_sent or 0) + len(before))
        if job.prompt_logprobs is not None and is_first:
            echoed = self._logprobs([None, *job.prompt_logprobs], job.prompt, 0)
            logprobs = _joined(echoed, logprobs)
        ids = {"token_ids": list(news.token_ids)} if body.return_token_ids else {}
        if body.return_token_ids and is_first:
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
        if logprobs is None or self._texts is None:
            return None
        return completion_logprobs(logprobs, token_ids, self._texts, offset)

    def _prompt_text(self, job: Job) -> str:
        """The prompt as text, however it was given."""
        if job.text is not None:
            return job.text
        return decode(self._service.backend.texts.need_tokenizer(), job.prompt)


def _joined(first: dict[str, list[Any]] | None, second: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
    if first is None or second is None:
        return first or second
    return {name: first[name] + second[name] for name in first}


def _check_size(num_tokens: int, num_top: int | None) -> None:
    """All prompts of a call are looked at in one go, and scored ones are held in memory until it ends."""
    if num_tokens > MOST_TOKENS:
        raise HttpError(
            400, f"The prompts have {num_tokens} tokens in all; give at most {MOST_TOKENS} at once.", param="prompt"
        )
    if num_top is not None and num_tokens * (num_top + 1) > MAX_ECHOED_LOGPROBS:
        raise HttpError(
            400,
            f"echo with logprobs of {num_top} scores {num_tokens} prompt tokens, more than fit one call "
            f"({MAX_ECHOED_LOGPROBS} log-probabilities); send fewer prompts at once.",
            param="logprobs",
        )


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """A list of prompts, whether one was given or several."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise HttpError(400, "prompt is empty; give text or token ids.", param="prompt")
    if isinstance(given[0], int):
        return [given]
    if len(given) > MAX_PROMPTS:
        raise HttpError(400, f"There are {len(given)} prompts; give at most {MAX_PROMPTS} at once.", param="prompt")
    return list(given)
