"""Makes tokens of the texts in a trace, as a server of a model does: with its tokenizer and its chat template.

Needs neither torch nor the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pagoda.analysis.traces.messages import Message, Tool, tools_as_text
from pagoda.chat.options import ChatOptions
from pagoda.chat.renderer import ChatRenderer, takes_tools
from pagoda.errors import ConfigError
from pagoda.models.plain_tokenizer import PlainTokenizer, load_plain_tokenizer
from pagoda.server.asked.template_words import complete_tool
from pagoda.tokenizing import encode

EMBEDDED_MODEL = Path(__file__).parent.parent / "assets" / "tiny"
MOST_TOKENS = 1 << 20  # of a conversation


class TraceTokens:
    """The tokens of texts by the tokenizer in `path`, that of the embedded model if that is None. Close it."""

    def __init__(self, path: Path | None) -> None:
        self._tokenizer = _tokenizer(path or EMBEDDED_MODEL)
        self._renderer = ChatRenderer(self._tokenizer, MOST_TOKENS)

    def of_text(self, text: str) -> list[int]:
        return self._encoded(text, add_special_tokens=True)

    def of_chat(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        template = self._renderer.template(ChatOptions(tools=tools))
        if tools and not takes_tools(template):
            # A server refuses them; whoever sent them had another template, which showed them before all else.
            messages, tools = [{"role": "system", "content": tools_as_text(tools)}, *messages], ()
        tools = [complete_tool(each, template) for each in tools]
        return self._encoded(self._renderer.render(messages, ChatOptions(tools=tools)), add_special_tokens=False)

    def of_answer(self, text: str) -> list[int]:
        return self._encoded(text, add_special_tokens=False)

    def close(self) -> None:
        self._renderer.close()

    def _encoded(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = encode(self._tokenizer, text, add_special_tokens=add_special_tokens).input_ids
        return ids


def _tokenizer(path: Path) -> PlainTokenizer:
    tokenizer = load_plain_tokenizer(path)
    if tokenizer is None:
        raise ConfigError(f"There is no tokenizer in {path}; give the directory of one with --tokenizer.")
    return tokenizer
