"""Renders conversations with a chat template, in a child process that is killed if the template does too much.

Knows where a template comes from and what it is given. How it is rendered is the child's to know (`template.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from pagoda.chat.options import ChatOptions
from pagoda.chat.plain import PlainCopier
from pagoda.chat.template import Rendering
from pagoda.confined.errors import ConfinedError, FunctionError, NotWantedError
from pagoda.confined.pool import Confined, Preparation
from pagoda.errors import ChatTemplateError, EngineClosedError, TokenizerRequiredError

RENDER_SECONDS = 2.0
START_SECONDS = 5.0
NUM_CHILDREN = 4  # a conversation that takes long does not hold up the others

# Of text that fits into a context, few have more for each token, and all of the small ones less in all.
MOST_CHARACTERS_PER_TOKEN = 64
LEAST_LIMIT_CHARACTERS = 1 << 20

# What it means for a template that something was raised in it.
WHAT_FAILS = {"TemplateError": "refuses this conversation", "OutputTooLongError": "writes too much"}

# What the child needs by itself, and for each character of a conversation.
LEAST_MEMORY_NBYTES = 512 << 20
MOST_MEMORY_NBYTES = 4 << 30
MEMORY_NBYTES_PER_CHARACTER = 32
# As JSON, that of most languages.
RESULT_NBYTES_PER_CHARACTER = 12


class ChatRenderer:
    """Renders for one tokenizer prompts of a model that takes `max_tokens`. Any thread may use it; close it.

    `seconds` are those that one conversation may take on a processor.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, seconds: float = RENDER_SECONDS) -> None:
        self._tokenizer = tokenizer
        self._seconds = seconds
        self._most_characters = max(max_tokens * MOST_CHARACTERS_PER_TOKEN, LEAST_LIMIT_CHARACTERS)
        memory_nbytes = LEAST_MEMORY_NBYTES + self._most_characters * MEMORY_NBYTES_PER_CHARACTER
        self._confined = Confined(
            memory_nbytes=min(memory_nbytes, MOST_MEMORY_NBYTES),
            num_children=NUM_CHILDREN,
            result_nbytes=self._most_characters * RESULT_NBYTES_PER_CHARACTER,
            preparation=Preparation("pagoda.chat.template:Templates", lambda: None, START_SECONDS),
        )

    @property
    def has_template(self) -> bool:
        return self._tokenizer is not None and self._tokenizer.chat_template is not None

    def template(self, options: ChatOptions) -> str:
        """The Jinja source that serves these options."""
        if self._tokenizer is None or not (options.chat_template or self.has_template):
            raise TokenizerRequiredError(
                "The tokenizer has no chat template; give one as chat_template, or use prompts of your own."
            )
        try:
            return str(self._tokenizer.get_chat_template(options.chat_template, tools=options.tools or None))
        except ValueError as error:
            raise ChatTemplateError(f"No chat template can be chosen: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> str:
        """The text of a conversation. Raises ChatTemplateError if the template refuses it or does too much."""
        try:
            rendering = self._rendering(messages, options)
            text = self._confined.call("pagoda.chat.template:Templates.render", rendering, seconds=self._seconds)
        except FunctionError as error:
            what = WHAT_FAILS.get(error.kind, f"fails at this conversation with {error.kind}")
            raise ChatTemplateError(f"The chat template {what}: {error}") from error
        except NotWantedError as error:
            raise EngineClosedError("The engine is closed.") from error
        except ConfinedError as error:
            raise ChatTemplateError(f"Rendering the chat template {error}; use a template that does less.") from error
        return str(text)

    def close(self) -> None:
        self._confined.close()

    def _rendering(self, messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> Rendering:
        template, copier = self.template(options), PlainCopier(self._most_characters)
        if options.tools and not takes_tools(template):
            raise ChatTemplateError("The model's chat template takes no tools; leave them out.")
        if options.continue_final_message and not isinstance(messages[-1].get("content"), str):
            raise ChatTemplateError("The last message has no content to go on with; give it some.")
        variables = {
            **self._tokenizer.special_tokens_map,
            "documents": None,
            **(options.chat_template_kwargs or {}),
            "tools": options.tools or None,
            "add_generation_prompt": options.add_generation_prompt,
        }
        return Rendering(
            template=template,
            messages=copier.copy(messages),
            variables=copier.copy(variables),
            mark=uuid4().hex if options.continue_final_message else None,
            now=datetime.now().isoformat(),  # noqa: DTZ005 - as templates show it
            most_characters=self._most_characters,
        )


def takes_tools(template: str) -> bool:
    return "tools" in template
