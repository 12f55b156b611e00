"""Continues prompts of text or token ids: `/v1/completions`."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.prompts import Prompt, ReadPrompt
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.accepted.exchange import respond
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import ignore, origin_of
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.asked.body import MOST_TOKENS
from pagoda.server.asked.forms import left_out
from pagoda.server.asked.opening import Opening
from pagoda.server.ground.messages import Call, Work, new_id
from pagoda.server.openai.completions_writer import CompletionWriter
from pagoda.server.openai.guided import guided_form, guided_param
from pagoda.server.openai.parameters import sampling_params
from pagoda.server.openai.schema import CompletionBody

MAX_PROMPTS = 1024
MAX_ECHOED_LOGPROBS = 1 << 20  # of one call; about 200 MB


class Completions:
    """The handler, over one service."""

    def __init__(self, service: Service, token_texts: TokenTexts | None) -> None:
        self._service = service
        self._token_texts = token_texts

    async def create(self, body: CompletionBody, request: Request) -> Response:
        """Continue each prompt `n` times."""
        service = self._service
        service.check_model(body.model)
        prompts = _prompts(body.prompt)
        _check(body)
        form = guided_form(body)
        ignore(request, left_out(form))
        params = _params(body, form, service.backend.model.default_params)
        origin = origin_of(request)
        service.check_room(origin.tenant, "prompt", len(prompts), len(prompts) * params.n)
        opening = service.contents.opening(origin.tenant.name, body.cached_content, body.cache_salt)
        read = await service.read(partial(self._read, opening), prompts, "prompt", origin.tenant)
        _check_size(sum(len(each.token_ids) for each in read), params.prompt_logprobs)
        constraint = await service.constraint(form, guided_param(body) or "", origin) if form else None
        call = Call(
            call_id=new_id("cmpl-"),
            origin=origin,
            works=[Work(each, params, constraint, opening.breakpoints) for each in read],
            param="prompt",
            streams=bool(body.stream),
            cache_salt=body.cache_salt or "",
        )
        writer = CompletionWriter(call.call_id, body, service.backend.texts, self._token_texts)
        return await respond(service, call, request, writer)

    def _read(self, opening: Opening, prompts: list[Prompt]) -> list[ReadPrompt]:
        return [opening.before_prompt(prompt, self._service.backend.texts) for prompt in prompts]


def _check(body: CompletionBody) -> None:
    """What is not supported, and contradictions between fields."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise HttpError(400, "best_of is not supported; leave it out, or give the value of n.", param="best_of")
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options needs stream to be true.", param="stream_options")


def _params(body: CompletionBody, form: StructuredOutputs | None, defaults: SamplingParams) -> SamplingParams:
    return sampling_params(
        body,
        defaults,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        structured_outputs=form,
    )


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
