"""`pagoda session save` and `load`: what a model computes of a prompt goes to a file, and goes on from there."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from pagoda.commands.options import load_llm, sampling_params
from pagoda.commands.reading import check_new_file, read_text
from pagoda.commands.report import RequestCost, table
from pagoda.engine.sessions import LoadedSession
from pagoda.errors import ConfigError
from pagoda.llm import LLM
from pagoda.prompts import Prompt
from pagoda.tokenizing import encode
from pagoda.units import format_nbytes


def save(arguments: Namespace) -> int:
    said, out = _read(arguments.file), arguments.out.expanduser()
    check_new_file(out, arguments.force)
    with load_llm(arguments) as llm:
        saved = llm.save_session(out, said, name=arguments.name, title=arguments.title)
    sys.stdout.write(
        f"{saved.path}: {saved.num_tokens:,} tokens, of which {saved.num_held_tokens:,} need not be computed again, "
        f"{format_nbytes(saved.nbytes)}\n"
    )
    return 0


def load(arguments: Namespace) -> int:
    sampling_params(arguments)  # what is wrong with them is told before a model is loaded
    with load_llm(arguments) as llm:
        session = llm.load_session(arguments.file.expanduser())
        if session.reason is not None:
            sys.stderr.write(f"warning: Some pages are computed again: {session.reason}\n")
        params = sampling_params(arguments, llm.get_default_sampling_params())
        for chunk in llm.stream(_next_prompt(llm, session, arguments.prompt), params):
            sys.stdout.write(chunk.text if llm.tokenizer else "".join(f"{token} " for token in chunk.token_ids))
            sys.stdout.flush()
        sys.stdout.write("\n")
    assert chunk.output is not None
    Console(stderr=True).print(table(RequestCost.of(chunk.output).rows()))
    return 0


def _read(file: Path) -> Any:
    """A prompt, or messages where the file is JSON."""
    text = read_text(file)
    if file.suffix != ".json":
        return text.removesuffix("\n")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} is not valid JSON: {error}; give messages, token ids, or text in another file."
        ) from (error)
    return value["messages"] if isinstance(value, dict) and "messages" in value else value


def _next_prompt(llm: LLM, session: LoadedSession, text: str | None) -> Prompt:
    """What comes next: an answer to `text` where messages were saved, or what continues the tokens."""
    if text is None:
        return session.token_ids
    if session.messages is not None:
        return llm.chat_prompt([*session.messages, {"role": "user", "content": text}])
    more = encode(llm.reader.need_tokenizer(), text, add_special_tokens=False).input_ids
    return [*session.token_ids, *more]
