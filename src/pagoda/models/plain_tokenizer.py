"""A tokenizer for programs that hold no model, such as routers: needs neither torch nor transformers where it is used.

Which tokenizer the files of a checkpoint mean is for transformers to say, since classes of its overrule what stands in
them. It does so once, in a child process and without torch (`tokenizer_description.py`); what comes of it is the one
file that the library of tokenizers reads. Gives the ids that the tokenizer of `tokenizer.py` gives, and what chat
templates ask for. Does not decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from pagoda import errors
from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.confined.errors import ConfinedError, FunctionError
from pagoda.confined.pool import Confined

READ = "pagoda.models.tokenizer_description:read"
# Transformers alone takes a second; the largest vocabularies take ten.
READ_SECONDS = 120.0
READ_NBYTES = 6 << 30
# A vocabulary of the largest size in the escapes of JSON.
DESCRIPTION_NBYTES = 384 << 20
NAMED_ERRORS: dict[str, type[errors.PagodaError]] = {
    each.__name__: each
    for each in (
        errors.ConfigError,
        errors.ModelError,
        errors.ModelNotFoundError,
        errors.CorruptCheckpointError,
        errors.UnsupportedModelError,
    )
}


@dataclass(frozen=True)
class TokenizerDescription:
    """A tokenizer as data. `backend` is what a tokenizer.json says, `chat_template` one source or several by name."""

    backend: str
    splits_special_tokens: bool
    special_tokens: Mapping[str, str]
    chat_template: str | Mapping[str, str] | None


class Encoded(NamedTuple):
    """What became of a text."""

    input_ids: list[int]


class PlainTokenizer:
    """Has those names of transformers' tokenizers that prompts need: `encode` and a `ChatRenderer` take it as one."""

    is_fast = True

    def __init__(self, description: TokenizerDescription) -> None:
        self._backend = Tokenizer.from_str(description.backend)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = description.splits_special_tokens
        self.special_tokens_map = dict(description.special_tokens)
        self.chat_template = description.chat_template

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Encoded:
        return Encoded(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """The source for a name or for none, or what was given if that is no name. ValueError if there is none."""
        known = self.chat_template
        if chat_template is None and isinstance(known, str):
            return known
        named = known if isinstance(known, Mapping) else {}
        wanted = [chat_template] if chat_template is not None else ["tool_use", "default"] if tools else ["default"]
        found = next((named[name] for name in wanted if name in named), chat_template)
        if found is None:
            raise ValueError(f"there is no default among the tokenizer's templates: {', '.join(sorted(named))}")
        return found


def load_plain_tokenizer(path: str | Path) -> PlainTokenizer | None:
    """The tokenizer in `path`, or None if the directory has none. Raises what `load_tokenizer` raises.

    Raises UnsupportedModelError for one whose ids the library of tokenizers alone does not give.
    """
    directory = checkpoint_directory(path, "tokenizer").absolute()
    confined = Confined(memory_nbytes=READ_NBYTES, result_nbytes=DESCRIPTION_NBYTES, gives_way=False)
    with closing(confined):
        try:
            values = confined.call(READ, str(directory), seconds=READ_SECONDS)
        except FunctionError as error:
            named = NAMED_ERRORS.get(error.kind, errors.CorruptCheckpointError)
            raise named(str(error)) from error
        except ConfinedError as error:
            raise errors.CorruptCheckpointError(f"Reading the tokenizer in {directory} {error}.") from error
    return None if values is None else PlainTokenizer(TokenizerDescription(**values))
