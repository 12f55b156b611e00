"""Reads what the server's own API computes ahead of requests: a prompt, or a conversation."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field
from starlette.requests import Request

from pagoda.errors import HttpError
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import scope_of, tenant_of
from pagoda.server.asked.body import Body, Items, TokenIds
from pagoda.server.asked.conversation import Conversation, ConversationReader, ReadConversation
from pagoda.server.ground.messages import Scope
from pagoda.server.openai.chat_prompt import tools_of, turns_of
from pagoda.server.openai.schema import Message, Tools


class SaidBody(Body):
    """What is to be computed, if it is not held: text, token ids, or messages."""

    model: str
    prompt: str | TokenIds | None = None
    messages: Items[Message] | None = Field(None, min_length=1)
    tools: Tools | None = None
    cache_salt: str | None = None

    @property
    def plain_messages(self) -> list[Any] | None:
        """As they were sent."""
        if self.messages is None:
            return None
        return [each.model_dump(mode="json", exclude_none=True, exclude_unset=True) for each in self.messages]


class SaidReader:
    """Makes tokens of bodies."""

    def __init__(self, service: Service, conversations: ConversationReader) -> None:
        self._service = service
        self._conversations = conversations

    async def read(self, body: SaidBody, request: Request, begins_answer: bool = False) -> ReadConversation:
        """The prompt; of messages with the beginning of an answer, if that is wanted. Raises HttpError."""
        tenant = tenant_of(request)
        if (body.prompt is None) == (body.messages is None):
            raise HttpError(400, "Give prompt or messages, and not both.", param="prompt")
        if body.prompt is not None:
            prompt = await self._service.read(self._service.backend.texts.read, body.prompt, "prompt", tenant)
            return ReadConversation(prompt, ())
        read = partial(self._messages, scope=scope_of(request, body.cache_salt), begins_answer=begins_answer)
        return await self._service.read(read, body, "messages", tenant)

    def _messages(self, body: SaidBody, scope: Scope, begins_answer: bool) -> ReadConversation:
        turns, tools = turns_of(body.messages or []), tools_of(body.tools)
        return self._conversations.read(Conversation(turns, tools, adds_generation_prompt=begins_answer), scope)
