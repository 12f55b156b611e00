"""What llguidance is told of a tokenizer: the bytes of every token, and how ordinary tokens spell a text.

A special token is none of the text that shows in its name: forced text that reads like one is spelled in ordinary
tokens. Runs in a confined child; knows the description of a tokenizer (`tokenizer.json`), and nothing of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

# What llguidance puts before the name of a token that is not text.
MARK = b"\xff"


class Vocabulary:
    """Tokens 0 up to `size`, of which `end_token_ids` end a sequence and `special_token_ids` are never text.

    Has what llguidance's `TokenizerWrapper` asks for. Raises ValueError if tokens have no bytes of their own.
    """

    bos_token_id = None

    def __init__(
        self, description: str, size: int, end_token_ids: Collection[int], special_token_ids: Collection[int]
    ) -> None:
        described = json.loads(description)
        added = described["added_tokens"]
        contents = {each["id"]: each["content"] for each in added}
        # A token that ends a sequence can never be part of a text, whatever it reads like.
        special = {each["id"] for each in added if _is_special(each)} | {*end_token_ids, *special_token_ids}
        self._ids = _ids(described["model"]["vocab"]) | {content: token for token, content in contents.items()}
        bytes_of = _reader(described["decoder"])
        self.tokens = [MARK + f"<[{token}]>".encode() for token in range(max(size, *self._ids.values()) + 1)]
        for name, token in self._ids.items():
            text = name.encode() if token in special or token in contents else bytes_of(name)
            if text is not None:
                self.tokens[token] = MARK + text if token in special else text
        # The last token is none that the model has: the end, for models without one.
        self.end_token_ids = sorted(end_token_ids) or [len(self.tokens) - 1]
        self.eos_token_id = self.end_token_ids[0]
        self.special_token_ids = sorted(special)
        self._speller = Tokenizer.from_str(json.dumps(_for_text(described)))
        self.greedy: Callable[[str], list[int]] = lambda _: []
        self.problem = ""  # why what llguidance reports next failed

    def __call__(self, text: str) -> list[int]:
        """Ordinary tokens with these bytes: those that the tokenizer would take, else the longest that fit."""
        for spell in (self._spelled, self.greedy):
            tokens = spell(text)
            if b"".join(self.tokens[token] for token in tokens) == text.encode():
                return tokens
        self.problem = f"the tokenizer has no tokens for {text[:100]!r}"
        raise ValueError(self.problem)

    def _spelled(self, text: str) -> list[int]:
        tokens = self._speller.encode(text, add_special_tokens=False).tokens
        return [self._ids[token] for token in tokens if token in self._ids]


def _is_special(added: Mapping[str, Any]) -> bool:
    """As llguidance has it: other tokens that were added, such as runs of spaces, are text."""
    content = added["content"]
    return bool(added["special"]) or (content.startswith("<") and content.endswith(">"))


def _ids(vocabulary: Any) -> dict[str, int]:
    """Of the tokens of any kind of model: a list has a score beside each."""
    if isinstance(vocabulary, dict):
        return vocabulary
    return {token: id for id, (token, _) in enumerate(vocabulary)}


def _reader(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes | None]:
    """What makes bytes of a token that is text; None of one that never is."""
    steps = list(_flat(decoder, "decoders"))
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        bytes_of = _byte_characters()
        return lambda token: bytes(bytes_of[each] for each in token) if bytes_of.keys() >= set(token) else None
    spaces = [step["pattern"]["String"] for step in steps if step["type"] == "Replace" and step["content"] == " "]
    spaces += [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    if not spaces or not kinds <= {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}:
        raise ValueError(f"its tokens ({' '.join(sorted(kinds)) or 'without a decoder'}) have no bytes of their own")
    (space, *_) = spaces

    def read(token: str) -> bytes:
        if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(space, " ").encode()

    return read


def _byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in the tokens of GPT-2 and its kin: those that show stand for themselves."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _for_text(described: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer that takes text for nothing but text, and puts no space before it."""
    return {
        **described,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "added_tokens": [each for each in described["added_tokens"] if not _is_special(each)],
        "normalizer": _sequence(
            "normalizers", [step for step in _flat(described["normalizer"], "normalizers") if step["type"] != "Prepend"]
        ),
        "pre_tokenizer": _sequence(
            "pretokenizers", [_without_space(step) for step in _flat(described["pre_tokenizer"], "pretokenizers")]
        ),
    }


def _flat(step: Mapping[str, Any] | None, name: str) -> Iterable[Mapping[str, Any]]:
    """The steps of a part of a tokenizer, however they are nested."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for each in step[name]:
        yield from _flat(each, name)


def _sequence(name: str, steps: list[Any]) -> dict[str, Any] | None:
    return {"type": "Sequence", name: steps} if steps else None


def _without_space(step: Mapping[str, Any]) -> dict[str, Any]:
    changes = {"add_prefix_space": False, "prepend_scheme": "never"}
    return {**step, **{name: value for name, value in changes.items() if name in step}}
