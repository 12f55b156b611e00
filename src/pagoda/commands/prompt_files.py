"""Reads files of prompts that are to be computed before anybody asks: text, JSON, or a prompt in each line of JSON.

What a prompt may be is said by `request_file.py`; here is which file has how many, and what comes before each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pagoda.analysis.prompt import Prompt
from pagoda.commands.reading import read_text
from pagoda.commands.request_file import RequestFiles
from pagoda.errors import ConfigError

LINES_SUFFIXES = (".jsonl", ".ndjson")
JSON_SUFFIX = ".json"
OWN_INSTRUCTIONS = ("system", "instructions")


class PromptText(NamedTuple):
    """What a file, or a line of one, says: text, or a value of JSON. `name` is for people."""

    name: str
    value: Any


class NamedPrompt(NamedTuple):
    """A prompt that has been read, and what it is called."""

    name: str
    prompt: Prompt


def prompt_texts(files: Sequence[Path], prefix: str = "") -> list[PromptText]:
    """All that the files have, each after `prefix`, which is a system prompt where there are messages.

    No model is needed for that. Raises ConfigError.
    """
    found = [each for file in files for each in _texts_of(file)]
    if not found:
        raise ConfigError("There is no prompt in the files; give text, or JSON with a prompt or messages.")
    return [each._replace(value=_after(prefix, each)) for each in found] if prefix else found


def read_prompts(texts: Sequence[PromptText], requests: RequestFiles) -> list[NamedPrompt]:
    """Raises ConfigError for what is no prompt."""
    return [NamedPrompt(each.name, requests.prompt_of(each.value, each.name)) for each in texts]


def _texts_of(file: Path) -> Iterator[PromptText]:
    text = read_text(file)
    if file.suffix in LINES_SUFFIXES:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                name = f"{file} line {number}"
                yield PromptText(name, _with_prompt(_parsed(line, name)))
    elif file.suffix == JSON_SUFFIX:
        yield PromptText(str(file), _with_prompt(_parsed(text, str(file))))
    else:
        yield PromptText(str(file), text.removesuffix("\n"))


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {error}") from error


def _with_prompt(value: Any) -> Any:
    """Lists of documents have their texts under another name."""
    is_text = isinstance(value, dict) and "text" in value and not {"prompt", "messages", "input"} & value.keys()
    return {"prompt": value["text"]} if is_text else value


def _after(prefix: str, given: PromptText) -> Any:
    value = given.value
    if isinstance(value, str):
        return prefix + value
    message = {"role": "system", "content": prefix.removesuffix("\n")}
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return [message, *value]
    if isinstance(value, dict) and not any(value.get(name) for name in OWN_INSTRUCTIONS):
        if isinstance(value.get("messages"), list):
            return {**value, "messages": [message, *value["messages"]]}
        if isinstance(value.get("prompt"), str):
            return {**value, "prompt": prefix + value["prompt"]}
    raise ConfigError(f"{given.name} is neither text nor messages without instructions; --prefix cannot go before it.")
