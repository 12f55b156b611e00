"""Reads the text of files that a command is given."""

from __future__ import annotations

import sys
from pathlib import Path

from pagoda.errors import ConfigError

STANDARD_INPUT = "-"


def read_text(file: Path) -> str:
    """With line ends as they are. Raises ConfigError."""
    if str(file) == STANDARD_INPUT:
        return sys.stdin.read()
    try:
        return file.expanduser().read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as text: {error}") from error
