"""How a conversation becomes a prompt, with vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda.checks import shown
from pagoda.errors import RequestError

# What a template is given by other names than those in `chat_template_kwargs`.
OWN_NAMES = ("messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """
    chat_template: Jinja source, or the name of one of the tokenizer's, instead of the tokenizer's own.
    add_generation_prompt: whether the prompt ends with the beginning of an answer.
    continue_final_message: whether the last message goes on instead; then there is no generation prompt.
    tools: JSON schemas of functions that the model may call.
    chat_template_kwargs: more variables for the template.
    """

    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise RequestError(f"chat_template is {shown(self.chat_template)}; give Jinja source as text.")
        for name in ("add_generation_prompt", "continue_final_message"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {shown(getattr(self, name))}; give True or False.")
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError(
                "continue_final_message goes on with the last message, add_generation_prompt begins a new one; set "
                "add_generation_prompt=False to continue."
            )
        self._check_tools()
        self._check_kwargs()

    def _check_tools(self) -> None:
        is_list = self.tools is None or isinstance(self.tools, (list, tuple))
        if not is_list or not all(isinstance(tool, Mapping) for tool in self.tools or ()):
            raise RequestError(
                f"tools is {shown(self.tools)}; give a list of tools, each a dictionary with its schema."
            )

    def _check_kwargs(self) -> None:
        kwargs = self.chat_template_kwargs
        if kwargs is None:
            return
        if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
            raise RequestError(f"chat_template_kwargs is {shown(kwargs)}; give a dictionary of named variables.")
        for name in OWN_NAMES:
            if name in kwargs:
                raise RequestError(f"chat_template_kwargs has {name}, which is an argument of its own; give it there.")
