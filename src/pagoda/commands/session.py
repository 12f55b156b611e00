"""`pagoda session`: conversations with their pages as files. `show` and `verify` need no model and load no torch."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pagoda.cache.session_file import SessionFile
from pagoda.cache.tiers.cipher import cipher_of
from pagoda.commands.report import Rows, table
from pagoda.config import Environment
from pagoda.errors import SessionError
from pagoda.units import format_nbytes

SHOWN_DIGITS = 12


def run(arguments: Namespace) -> int:
    if arguments.action in ("save", "load"):
        from pagoda.commands import session_model

        return {"save": session_model.save, "load": session_model.load}[arguments.action](arguments)
    return {"show": _show, "verify": _verify}[arguments.action](arguments)


def _show(arguments: Namespace) -> int:
    with _open(arguments.file.expanduser()) as file:
        told = session_as_json(file)
        messages = file.conversation.messages if arguments.show_text else None
    if arguments.json:
        _print_json(told | ({"messages": messages} if arguments.show_text else {}))
        return 0
    console = Console()
    console.print(table([(name, escape(text)) for name, text in _rows(told)]))
    for line in _lines(messages or []):
        console.print(line, markup=False, highlight=False)
    return 0


def _verify(arguments: Namespace) -> int:
    found = [_verified(file.expanduser()) for file in arguments.files]
    if arguments.json:
        _print_json(found)
    else:
        for each in found:
            sys.stdout.writelines(f"{line}\n" for line in _verdict(each))
    return 1 if any(each["error"] or each["damages"] for each in found) else 0


def _open(path: Path) -> SessionFile:
    return SessionFile.open(path, cipher_of(Environment.read().kv_key))


def session_as_json(file: SessionFile) -> dict[str, Any]:
    """What a session says of itself, without what was said in it."""
    description, identity = file.description, file.description.identity
    return {
        "name": description.name,
        "title": file.conversation.title,
        "model": description.model,
        "created": datetime.fromtimestamp(description.created_ms / 1000, UTC).isoformat(timespec="seconds"),
        "num_tokens": len(file.tokens),
        "num_held_tokens": description.num_held_tokens,
        "num_encoder_tokens": description.num_encoder_tokens,
        "num_messages": len(file.conversation.messages or []),
        "num_records": len(file.keys),
        "nbytes": file.nbytes,
        "kv_format": identity.format,
        "page_tokens": identity.page_tokens,
        "identity": identity._asdict() | {"digest": identity.digest.hex()},
    }


def _rows(told: dict[str, Any]) -> Rows:
    identity = told["identity"]
    rows = [
        ("name", told["name"] or "-"),
        ("title", told["title"] or "-"),
        ("saved", told["created"]),
        ("model", told["model"] or "-"),
        ("  weights", identity["weights"][:SHOWN_DIGITS]),
        ("tokens", f"{told['num_tokens']:,}"),
        ("  in pages", f"{told['num_held_tokens']:,}"),
    ]
    if told["num_encoder_tokens"]:
        rows.append(("  of the encoder", f"{told['num_encoder_tokens']:,}"))
    return [
        *rows,
        ("messages", f"{told['num_messages']:,}"),
        ("pages", f"{told['num_records']:,} of {told['page_tokens']} tokens at most, as {told['kv_format']}"),
        ("size", format_nbytes(told["nbytes"])),
        ("identity", identity["digest"]),
    ]


def _lines(messages: list[Any]) -> Iterator[str]:
    """Messages for a terminal, which must obey nothing of them."""
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        lines = "".join(each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text)
        yield f"\n{message.get('role')!a}\n{lines}"


def _verified(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"file": str(path), "error": None, "num_records": 0, "nbytes": 0, "damages": []}
    try:
        with _open(path) as file:
            damages = [{"key": each.key.hex(), "offset": each.offset, "why": each.message} for each in file.verify()]
            return told | {"num_records": len(file.keys), "nbytes": file.nbytes, "damages": damages}
    except SessionError as error:
        return told | {"error": str(error)}


def _verdict(found: dict[str, Any]) -> Iterator[str]:
    if found["error"]:
        yield found["error"]
        return
    size = f"{found['num_records']:,} page{'s' * (found['num_records'] != 1)}, {format_nbytes(found['nbytes'])}"
    if not found["damages"]:
        yield f"{found['file']}: {size}, all as they were saved"
        return
    yield f"{found['file']}: {size}, {len(found['damages']):,} damaged; what they held will be computed again:"
    for each in found["damages"]:
        yield f"  at byte {each['offset']:,}, page {each['key'][:SHOWN_DIGITS]}: {each['why']}"


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
