"""Turns text into tokens and back over HTTP, as vLLM does: `/tokenize`, `/detokenize`, `/tokenizer_info`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pagoda.errors import HttpError
from pagoda.server.accepted.service import Service
from pagoda.server.accepted.wire import json_response, tenant_of
from pagoda.server.asked.conversation import Conversation, ConversationReader
from pagoda.server.openai.chat_prompt import tools_of, turns_of
from pagoda.server.openai.schema import DetokenizeBody, TokenizeBody
from pagoda.tokenizing import decode, encode


class Tokens:
    """The handlers, over one service."""

    def __init__(self, service: Service, conversations: ConversationReader) -> None:
        self._service = service
        self._conversations = conversations

    async def tokenize(self, body: TokenizeBody, request: Request) -> Response:
        """The token ids of a prompt or of a conversation."""
        if body.model is not None:
            self._service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise HttpError(400, "Give prompt or messages, and not both.", param="prompt")
        ids = await self._service.read(self._read, body, "prompt", tenant_of(request))
        answer: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": self._service.backend.model.max_model_len,
            "tokens": ids,
        }
        if body.return_token_strs:
            answer["token_strs"] = self._service.backend.texts.need_tokenizer().convert_ids_to_tokens(ids)
        return json_response(answer)

    async def detokenize(self, body: DetokenizeBody, request: Request) -> Response:
        """The text of token ids."""
        if body.model is not None:
            self._service.check_model(body.model)
        text = await self._service.read(self._text, body.tokens, "tokens", tenant_of(request))
        return json_response({"prompt": text})

    async def info(self) -> Response:
        """What kind of tokenizer it is."""
        tokenizer = self._service.backend.texts.need_tokenizer()
        return json_response(
            {
                "tokenizer_class": type(tokenizer).__name__,
                "vocab_size": len(tokenizer),
                "model_max_length": self._service.backend.model.max_model_len,
                "bos_token": tokenizer.bos_token,
                "eos_token": tokenizer.eos_token,
                "pad_token": tokenizer.pad_token,
                "unk_token": tokenizer.unk_token,
                "chat_template": tokenizer.chat_template,
            }
        )

    def _text(self, token_ids: list[int]) -> str:
        size = self._service.backend.model.vocab_size
        wrong = next((token for token in token_ids if not 0 <= token < size), None)
        if wrong is not None:
            raise HttpError(400, f"Token id {wrong} is not in the vocabulary of {size} tokens.", param="tokens")
        return decode(self._service.backend.texts.need_tokenizer(), token_ids)

    def _read(self, body: TokenizeBody) -> list[int]:
        tokenizer = self._service.backend.texts.need_tokenizer()
        if body.prompt is not None:
            self._service.backend.texts.check_text(body.prompt)
            special = True if body.add_special_tokens is None else body.add_special_tokens
            return list(encode(tokenizer, body.prompt, add_special_tokens=special).input_ids)
        conversation = Conversation(
            turns_of(body.messages or []), tools_of(body.tools), adds_generation_prompt=body.add_generation_prompt
        )
        return self._conversations.read(conversation).prompt.token_ids
