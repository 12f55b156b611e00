"""Copies of what callers give, as JSON can say it: what a template sees has no methods, and a bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagoda.errors import ChatTemplateError


class PlainCopier:
    """Makes copies that have so many characters in all. Raises ChatTemplateError for more, and for what is not JSON."""

    def __init__(self, most_characters: int) -> None:
        self._most_characters = most_characters
        self._num_characters = 0

    def copy(self, value: Any) -> Any:
        try:
            return self._copy(value)
        except RecursionError as error:
            raise ChatTemplateError("The conversation is nested too deeply; make it flatter.") from error

    def _copy(self, value: Any) -> Any:
        self._count(1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            self._count(len(value))
            return str.__str__(value)
        if isinstance(value, int):
            self._count(value.bit_length())
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Mapping):
            return {self._copy(name): self._copy(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copy(item) for item in value]
        raise ChatTemplateError(
            f"The conversation has a {type(value).__name__}; give text, numbers, lists and dictionaries alone."
        )

    def _count(self, num_characters: int) -> None:
        self._num_characters += num_characters
        if self._num_characters > self._most_characters:
            raise ChatTemplateError(
                f"The conversation has more than {self._most_characters} characters, which is more than this model's "
                "prompts have; shorten it."
            )
