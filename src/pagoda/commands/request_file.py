"""Reads files that hold a prompt or a request, and makes the prompts of them that the server would make.

A file has text, a list of messages, or the body of a request: OpenAI's chat completions, completions and responses, or
Anthropic's messages. No model is loaded, only its tokenizer and chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pagoda.analysis.prompt import Message, Prompt
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer
from pagoda.errors import ConfigError, PagodaError
from pagoda.models.plain_tokenizer import PlainTokenizer
from pagoda.prompts import ReadPrompt
from pagoda.server.anthropic import prompt as anthropic_prompt
from pagoda.server.anthropic.schema import MessagesBody
from pagoda.server.asked.conversation import Conversation, ConversationReader
from pagoda.server.asked.leniency import MEDIA, Leniency
from pagoda.server.asked.outline import outline
from pagoda.server.ground.errors import invalid_field
from pagoda.server.openai import chat_prompt, responses_prompt
from pagoda.server.openai.responses_schema import ResponseBody
from pagoda.server.openai.schema import ChatBody
from pagoda.tokenizing import encode

ANTHROPIC_FIELDS = ("system", "anthropic_version", "thinking", "output_config", "container")
ANTHROPIC_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking")
FORMS = (
    "give text, a list of messages, or the body of a request (messages, input or prompt) as OpenAI and Anthropic have"
)
JSON_SUFFIX = ".json"
TOKEN_IDS = range(1 << 31)
SHOWN_SETTINGS = ("model", "cache_salt", "prompt_cache_key")


class RequestFiles:
    """Reads requests for one tokenizer, whose chat template `template` replaces. Close it."""

    def __init__(self, tokenizer: PlainTokenizer, max_tokens: int, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chats = ChatRenderer(tokenizer, max_tokens)
        self._conversations = ConversationReader(_PlainTexts(tokenizer, self._chats), template)

    def read(self, texts: Sequence[str], names: Sequence[str]) -> list[Prompt]:
        """The prompts in the contents of files of these names. A newline that ends all of them is of none.

        Raises ConfigError for what is no request.
        """
        if all(text.endswith("\n") for text in texts):
            texts = [text[:-1] for text in texts]
        return [self._read(text, name) for text, name in zip(texts, names, strict=True)]

    def close(self) -> None:
        self._chats.close()

    def prompt_of(self, value: Any, name: str) -> Prompt:
        """Of text, or of what a file says in JSON. Raises ConfigError for what is no request."""
        try:
            if isinstance(value, str):
                return Prompt(self._encoded(value), value)
            if isinstance(value, Mapping):
                return self._request(value)
            if _is_messages(value):
                return self._request({"messages": value})
            return self._completion({"prompt": value})
        except PagodaError as error:
            raise ConfigError(f"{name} cannot be read: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{name} cannot be read: it is nested too deeply; make it flatter.") from error

    def _read(self, text: str, name: str) -> Prompt:
        value = _parsed(text, name)
        is_request = isinstance(value, Mapping) or _is_messages(value) or _are_numbers(value)
        return self.prompt_of(value if is_request or Path(name).suffix == JSON_SUFFIX else text, name)

    def _request(self, body: Mapping[str, Any]) -> Prompt:
        if isinstance(body.get("body"), Mapping):  # a line of a batch
            body = body["body"]
        if "messages" not in body and "input" not in body:
            return self._completion(body)
        conversation = _conversation(body)
        text = self._conversations.written(conversation)
        return Prompt(
            token_ids=encode(self._tokenizer, text, add_special_tokens=False).input_ids,
            text=text,
            sections=outline(conversation, text),
            messages=[
                Message(turn.role, "\n".join(part.text for part in turn.parts), turn.more)
                for turn in conversation.turns
            ],
            tools=conversation.tools,
            settings=_settings(body) | _told(conversation),
            media=list(_media(body)),
        )

    def _completion(self, body: Mapping[str, Any]) -> Prompt:
        prompt = _only(body.get("prompt", body.get("prompt_token_ids")))
        if isinstance(prompt, str):
            return Prompt(self._encoded(prompt), prompt, settings=_settings(body))
        if _are_numbers(prompt):
            return Prompt(_token_ids(prompt), settings=_settings(body))
        raise ConfigError(f"it has neither messages, input nor one prompt; {FORMS}.")

    def _encoded(self, text: str) -> list[int]:
        if not text:
            raise ConfigError(f"it is empty; {FORMS}.")
        return list(encode(self._tokenizer, text).input_ids)


class _PlainTexts:
    """The server's texts, of a tokenizer without a model."""

    def __init__(self, tokenizer: PlainTokenizer, chats: ChatRenderer) -> None:
        self.tokenizer = tokenizer
        self._chats = chats

    def need_tokenizer(self) -> PlainTokenizer:
        return self.tokenizer

    def read(self, prompt: Any) -> ReadPrompt:
        return ReadPrompt(prompt, list(encode(self.tokenizer, prompt).input_ids))

    def check_text(self, text: str) -> None:
        """Nothing is computed, so any length will do."""

    def template(self, options: ChatOptions) -> str:
        return self._chats.template(options)

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        return self._chats.render(messages, options)


def _conversation(body: Mapping[str, Any]) -> Conversation:
    """Of the API that the body is of, by its fields."""
    completed = {"model": "", **body}
    if "input" in body:
        if body.get("previous_response_id"):
            raise ConfigError("it goes on from a stored response; give the whole input.")
        return responses_prompt.conversation_of(_validated(ResponseBody, completed), ())
    if _is_anthropic(body):
        return anthropic_prompt.conversation_of(_validated(MessagesBody, {"max_tokens": 1, **completed}))
    return chat_prompt.conversation_of(_validated(ChatBody, completed))


def _validated(kind: Any, body: Mapping[str, Any]) -> Any:
    model: type[BaseModel] = kind
    try:
        return model.model_validate(body, context=Leniency())
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise ConfigError(invalid_field(errors, body).message) from error


def _is_anthropic(body: Mapping[str, Any]) -> bool:
    if any(name in body for name in ANTHROPIC_FIELDS) or any("input_schema" in tool for tool in _dicts(body, "tools")):
        return True
    blocks = (block for message in _dicts(body, "messages") for block in _dicts(message, "content"))
    return any(block.get("type") in ANTHROPIC_BLOCKS or "cache_control" in block for block in blocks)


def _dicts(value: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    items = value.get(name)
    yield from (item for item in items if isinstance(item, Mapping)) if isinstance(items, list) else ()


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in SHOWN_SETTINGS if body.get(name) is not None}


def _told(conversation: Conversation) -> dict[str, Any]:
    """What the template is told beside the messages."""
    return {
        "reasoning_effort": conversation.effort,
        "thinking": conversation.thinking,
        "chat_template_kwargs": dict(conversation.arguments),
        "add_generation_prompt": conversation.adds_generation_prompt,
        "continue_final_message": conversation.continues,
    }


def _media(value: Any) -> Iterator[str]:
    """Digests of all that is no text, in order."""
    if isinstance(value, Mapping):
        kind = value.get("type")
        if isinstance(kind, str) and kind in MEDIA:
            yield blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _media(each)


def _parsed(text: str, name: str) -> Any:
    """What the text is as JSON, None if it is something else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if Path(name).suffix == JSON_SUFFIX:
            raise ConfigError(f"{name} is not valid JSON: {error}; {FORMS}.") from error
        return None


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _only(prompt: Any) -> Any:
    """The one prompt of a list of prompts."""
    if not isinstance(prompt, list) or not all(isinstance(each, str | list) for each in prompt):
        return prompt
    if len(prompt) > 1:
        raise ConfigError(f"it has {len(prompt)} prompts; give a file to each, and compare two of them.")
    return prompt[0] if prompt else prompt


def _token_ids(numbers: list[int]) -> list[int]:
    wrong = [number for number in numbers if number not in TOKEN_IDS]
    if wrong:
        raise ConfigError(f"it has {wrong[0]} among its token ids; give numbers from 0 up, as the tokenizer does.")
    return numbers
