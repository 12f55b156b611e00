"""Answers with text and function calls as a list of items, which later requests may go on from: `/v1/responses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pagoda.engine.request import TokenLogprobs
from pagoda.errors import HttpError
from pagoda.sampling_params import SamplingParams, StructuredOutputs
from pagoda.server.accepted.exchange import Exchange, respond
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, tenant_of
from pagoda.server.answered.latest import Latest
from pagoda.server.answered.record import Record
from pagoda.server.answered.token_text import TokenTexts
from pagoda.server.asked.conversation import Conversation, ConversationReader, Turn
from pagoda.server.asked.fingerprint import Fingerprint, History, ReadBody, Section, missed_tokens, plain
from pagoda.server.asked.forms import call_form, check_choice, json_form
from pagoda.server.asked.opening import Opening
from pagoda.server.asked.sampling import checked
from pagoda.server.ground.jsons import to_json
from pagoda.server.ground.messages import Scope
from pagoda.server.openai.projection import chat_logprobs
from pagoda.server.openai.responses_prompt import conversation_of
from pagoda.server.openai.responses_schema import JsonSchemaFormat, NamedFunction, ResponseBody
from pagoda.server.openai.responses_writer import ResponseShape, ResponseWriter
from pagoda.server.openai.schema import JsonObjectFormat
from pagoda.server.replies.reader import ReplyReader, Terms

MOST_STORED = 1024
MOST_STORED_NBYTES = 64 << 20
REASONS = {
    Section.MODEL: "model_changed",
    Section.CACHE_KEY: "prompt_cache_key_changed",
    Section.TOOLS: "tools_changed",
    Section.SYSTEM: "input_changed",
    Section.MESSAGES: "input_changed",
    Section.EFFORT: "reasoning_effort_changed",
    Section.SETTINGS: "text_format_changed",
}


@dataclass(frozen=True)
class _Stored:
    """A response that others may go on from: the turns up to its answer, and what was answered."""

    turns: tuple[Turn, ...]
    response: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """About as many as its texts have."""
        return len(to_json([plain(turn) for turn in self.turns])) + len(to_json(self.response))


class Responses:
    """The handlers, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader, token_texts: TokenTexts | None) -> None:
        self._service = service
        self._conversations = conversations
        self._token_texts = token_texts
        self._exchange = Exchange(service, "resp_", "input")
        self._history = History()
        self._stored = Latest[_Stored](MOST_STORED, MOST_STORED_NBYTES)

    async def create(self, body: ResponseBody, request: Request) -> Response:
        """Answer what is asked, from where an earlier response ended if one is named."""
        service = self._service
        service.check_model(body.model)
        opening = service.contents.opening(tenant_of(request).name, body.cached_content, body.cache_salt)
        _check(body, opening)
        reading, form_param = partial(self._reading, body, opening), "text" if _is_free(body) else "tools"
        asked, call = await self._exchange.ask(body, request, reading, form_param)
        shape = ResponseShape(
            response_id=call.call_id,
            created=int(time()),
            body=body,
            conversation=asked.conversation,
            fingerprint=asked.fingerprint,
            tenant=call.origin.tenant.name,
            style=asked.read.style,
        )
        reader = ReplyReader(shape.style, _terms(body, asked), is_whole=not body.stream)
        diagnose, keep = partial(self._diagnostics, shape), partial(self._keep, shape)
        return await respond(service, call, request, ResponseWriter(shape, reader, self._logprobs, diagnose, keep))

    def _reading(self, body: ResponseBody, opening: Opening, scope: Scope) -> Callable[[ResponseBody], ReadBody]:
        earlier = self._earlier(scope.tenant, body.previous_response_id)
        return partial(self._read, earlier=earlier, opening=opening, scope=scope)

    def _read(self, body: ResponseBody, earlier: tuple[Turn, ...], opening: Opening, scope: Scope) -> ReadBody:
        conversation = opening.before(conversation_of(body, earlier))
        params = _params(body, conversation, self._service.backend.model.default_params)
        read = self._conversations.read(conversation, scope, opening)
        fingerprint = Fingerprint.of(
            conversation,
            model=body.model,
            cache_key=[body.prompt_cache_key, body.cache_salt],
            settings=None if body.text is None else body.text.model_dump(by_alias=True),
        )
        return ReadBody(conversation, params, read, fingerprint.with_tokens(len(read.prompt.token_ids)))

    async def compact(self) -> Response:
        """Not at hand; the id in the path of a stored response must not take its place."""
        raise HttpError(404, "This server does not compact conversations; send all their items, or fewer of them.")

    async def retrieve(self, response_id: str, request: Request) -> Response:
        """A stored response."""
        return json_response(self._find(tenant_of(request).name, response_id).response)

    async def delete(self, response_id: str, request: Request) -> Response:
        """Forget a stored response."""
        tenant = tenant_of(request).name
        self._find(tenant, response_id)
        self._stored.remove(tenant, response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    def _logprobs(self, logprobs: Sequence[TokenLogprobs] | None, num_top: int) -> list[dict[str, Any]]:
        if logprobs is None or self._token_texts is None:
            return []
        content: list[dict[str, Any]] = chat_logprobs(logprobs, self._token_texts, num_top)["content"]
        return content

    def _keep(self, shape: ResponseShape, response: dict[str, Any], answer: tuple[Turn, ...]) -> None:
        """Let others go on from a response, and compare theirs with it."""
        self._history.remember(shape.tenant, shape.response_id, shape.fingerprint)
        if shape.body.store is False:
            return
        turns = shape.conversation.turns[shape.body.instructions is not None :]
        stored = _Stored((*turns, *answer), response)
        self._stored.put(shape.tenant, shape.response_id, stored, stored.nbytes)

    def _diagnostics(self, shape: ResponseShape, record: Record) -> dict[str, Any] | None:
        """Why less was read than the response that is compared with would have allowed."""
        options = shape.body.prompt_cache_options
        if options is None or options.comparison_response_id is None:
            return None
        earlier = self._history.find(shape.tenant, options.comparison_response_id)
        if earlier is None:
            return {"type": "comparison_response_not_found"}
        missed = missed_tokens(earlier, record.num_prompt_tokens, record.num_read)
        if not missed:
            return {"type": "cache_hit"}
        divergence = shape.fingerprint.divergence(earlier)
        if divergence is None:  # evicted, or not computed yet
            return {"type": "unavailable"}
        return {
            "type": "cache_miss",
            "cache_missed_tokens": missed,
            "reason": "context_compacted" if divergence.is_compacted else REASONS[divergence.section],
            "comparison_reusable_tokens": record.num_read,
        }

    def _earlier(self, tenant: str, response_id: str | None) -> tuple[Turn, ...]:
        if response_id is None:
            return ()
        stored = self._stored.find(tenant, response_id)
        if stored is None:
            raise HttpError(
                400,
                f"There is no stored response {response_id!r}; send the whole input.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return stored.turns

    def _find(self, tenant: str, response_id: str) -> _Stored:
        stored = self._stored.find(tenant, response_id)
        if stored is None:
            raise HttpError(404, f"There is no stored response {response_id!r}.", code="response_not_found")
        return stored


def _is_prewarm(body: ResponseBody) -> bool:
    """Whether nothing is to be generated: the prompt is put into the cache."""
    return body.prompt_cache_options is not None and body.prompt_cache_options.prewarm


def _is_free(body: ResponseBody) -> bool:
    """Whether the model need not call a tool."""
    return body.tool_choice in (None, "none", "auto")


def _terms(body: ResponseBody, asked: ReadBody) -> Terms:
    """What the model may write: calls of the tools that it is given, if it may call any."""
    return Terms(
        tools=() if body.tool_choice == "none" else asked.conversation.tools,
        is_forced=not _is_free(body),
        is_form=asked.params.structured_outputs is not None,
        most_calls=1 if body.parallel_tool_calls is False else None,
    )


def _form(body: ResponseBody, conversation: Conversation) -> StructuredOutputs | None:
    wanted = None if body.text is None else body.text.format
    form = None
    if isinstance(wanted, JsonSchemaFormat):
        form = json_form(wanted.schema_, "text" if wanted.strict else None)
    elif isinstance(wanted, JsonObjectFormat):
        form = json_form(wanted.schema_)
    if _is_free(body):
        return form
    if form is not None:
        raise HttpError(400, "text.format and a tool_choice that asks for a call contradict.", param="tool_choice")
    return call_form(conversation.tools, _chosen(body))


def _chosen(body: ResponseBody) -> str | None:
    """The tool that has to be called."""
    return body.tool_choice.name if isinstance(body.tool_choice, NamedFunction) else None


def _params(body: ResponseBody, conversation: Conversation, defaults: SamplingParams) -> SamplingParams:
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "kv_compression": body.kv_compression,
        "sparse_attention": body.sparse_attention,
        "context_full": body.context_full,
        "memory_full": body.memory_full,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    wants_logprobs = "message.output_text.logprobs" in (body.include or ())
    most = defaults.max_tokens if body.max_output_tokens is None else body.max_output_tokens
    return checked(
        defaults,
        **fields,
        max_tokens=0 if _is_prewarm(body) else most,
        ignore_eos=body.ignore_eos,
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        structured_outputs=_form(body, conversation),
    )


def _check(body: ResponseBody, opening: Opening) -> None:
    """Contradictions between fields."""
    if opening.name and body.previous_response_id is not None:
        message = "A stored response has all that came before it; leave cached_content out."
        raise HttpError(400, message, param="cached_content")
    if body.input == []:
        raise HttpError(400, "input is empty; give text or items.", param="input")
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options needs stream to be true.", param="stream_options")
    if not _is_free(body):
        check_choice([*opening.tool_names, *(tool.name for tool in body.tools or ())], _chosen(body))
