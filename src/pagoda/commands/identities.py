"""Finds what the pages of two servers are of: asks them, or reads what they have answered before."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from pagoda.analysis.namespaces import WANTED, identity_from_json
from pagoda.cache.prefix.names import Identity
from pagoda.commands.asking import ask_identity
from pagoda.commands.reading import read_text
from pagoda.errors import ConfigError


def find_identities(arguments: Namespace) -> list[Identity]:
    """Of the two servers that `--url` or `--identity` name, the earlier one first; none if they name none."""
    if arguments.identity is not None:
        return [_saved(file) for file in arguments.identity]
    return [identity_from_json(ask_identity(url, arguments.api_key), url) for url in arguments.url]


def _saved(file: Path) -> Identity:
    text = read_text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}; {WANTED}") from error
    return identity_from_json(value, str(file))
