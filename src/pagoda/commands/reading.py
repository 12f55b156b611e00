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
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; name another file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} cannot be read as text: {error}; name another file.") from error


def check_new_file(file: Path, may_exist: bool) -> None:
    """Raise ConfigError if `file` cannot be written, or is there already and may not be written over."""
    file = file.expanduser()
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file.")
    if not file.parent.is_dir():
        raise ConfigError(f"There is no folder {file.parent}; make it first, or name another file.")
    if file.exists() and not may_exist:
        raise ConfigError(f"{file} exists; choose another name, or write over it with --force.")
