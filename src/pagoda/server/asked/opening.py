"""What a prompt opens with, if it refers to a named cache: tokens that were computed before it, and what they are of.

Data and rules alone. Who made it, and for how long it is kept, is known elsewhere (`accepted/contents.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pagoda.cache.leases import Breakpoint
from pagoda.errors import HttpError
from pagoda.prompts import ReadPrompt
from pagoda.server.backend.base import Texts
from pagoda.tokenizing import encode

if TYPE_CHECKING:
    from pagoda.prompts import Prompt
    from pagoda.server.asked.conversation import Conversation, Turn

PARAM = "cached_content"


@dataclass(frozen=True)
class Opening:
    """The first tokens of a prompt, and their `text`, None if that is not known. They are kept for `ttl_seconds` more.

    They are of `turns` and `tools`, or of a prompt, which has no turns. Without a name there is none.
    """

    name: str = ""
    text: str | None = ""
    token_ids: Sequence[int] = ()
    turns: tuple[Turn, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    strict_tools: frozenset[str] = frozenset()
    ttl_seconds: float = 0.0

    @property
    def tool_names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.tools]

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """It is to stay, however it has been until now."""
        return (Breakpoint(len(self.token_ids), self.ttl_seconds),) if self.name else ()

    def before(self, conversation: Conversation) -> Conversation:
        """A conversation that goes on from it. Raises HttpError for one that would have to stand before it."""
        if not self.name:
            return conversation
        if not self.turns:
            raise HttpError(400, f"{self.name} was made of a prompt; name it in /v1/completions.", param=PARAM)
        if conversation.tools or any(turn.role == "system" for turn in conversation.turns):
            raise HttpError(
                400,
                f"{self.name} comes before this request, which has a system prompt or tools of its own; leave them "
                "out, or make another cache that has them.",
                param=PARAM,
            )
        return replace(
            conversation,
            turns=(*self.turns, *conversation.turns),
            tools=self.tools,
            strict_tools=self.strict_tools,
        )

    def before_prompt(self, prompt: Prompt, texts: Texts) -> ReadPrompt:
        """A prompt that goes on from it: its own text is tokens of its own, whatever stands before."""
        if not self.name:
            return texts.read(prompt)
        if self.turns:
            raise HttpError(400, f"{self.name} was made of messages; name it where messages are.", param=PARAM)
        if not isinstance(prompt, str):
            return ReadPrompt(None, [*self.token_ids, *texts.read(prompt).token_ids])
        texts.check_text(prompt)
        more = encode(texts.need_tokenizer(), prompt, add_special_tokens=False).input_ids
        return ReadPrompt(None if self.text is None else self.text + prompt, [*self.token_ids, *more])

    def check_begins(self, text: str) -> None:
        """Raise HttpError if the text of a conversation does not begin with it, so that its pages would be missed."""
        if self.name and not text.startswith(self.text or ""):
            raise HttpError(
                400,
                f"The model's chat template writes {self.name} in other words, or not first, before these messages; "
                "send all messages instead: what they share with others is cached anyway.",
                param=PARAM,
            )


NO_OPENING = Opening()
