"""The config.json of a checkpoint directory, as a dictionary. Does not know what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pagoda.checkpoint.directory import other_format
from pagoda.checkpoint.files import read_object
from pagoda.errors import ModelNotFoundError


def read_config(directory: Path) -> dict[str, Any]:
    """The contents of config.json."""
    file = directory / "config.json"
    if not file.is_file():
        raise ModelNotFoundError(
            f"{directory} has no config.json, so it is not a Hugging Face checkpoint.{other_format(directory)}"
        )
    return read_object(file)
