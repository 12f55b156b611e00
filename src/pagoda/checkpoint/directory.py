"""From the path that a user gives to the directory of a checkpoint, or to an error that says what is there instead.

Knows what people give where a directory is wanted, and what other formats look like. Reads no file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pagoda.errors import ConfigError, ModelNotFoundError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
GGUF = "GGUF files are made for llama.cpp; take the checkpoint in safetensors that this one was made from"
PICKLES = "these are pickles, which can run code; convert them to safetensors"
ADAPTER = "this is an adapter; merge it into its base model (merge_and_unload of peft) and give what that saves"
# What is in directories without a checkpoint, and what to do about it.
OTHER_FORMATS = {
    "*.gguf": GGUF,
    "adapter_config.json": ADAPTER,
    "adapter_model.*": ADAPTER,
    "*.bin": PICKLES,
    "*.pt": PICKLES,
    "*.pth": PICKLES,
    "*.ckpt": PICKLES,
}


def checkpoint_directory(path: Any, option: str = "model") -> Path:
    """The directory at `path`. Raises ConfigError for what is no path, and ModelNotFoundError."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ConfigError(f"{option} is a {type(path).__name__}; give the path of a directory.")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ConfigError(f"{option} is {text!r:.200}; give the path of a directory.")
    try:
        directory = Path(text).expanduser()
        if directory.is_dir():
            return directory
        is_file = directory.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelNotFoundError(
            f"{text!r:.200} cannot be looked at: {error}. Give a downloaded checkpoint."
        ) from error
    raise _of_file(directory) if is_file else _of_nothing(directory)


def other_format(directory: Path) -> str:
    """What to do with what is in `directory` instead of a checkpoint, as a sentence; empty if nothing is known."""
    for pattern, hint in OTHER_FORMATS.items():
        if any(directory.glob(pattern)):
            return f" It has {pattern}: {hint}."
    return ""


def _of_file(file: Path) -> ModelNotFoundError:
    if file.suffix == ".gguf":
        return ModelNotFoundError(f"{file} is not a directory: {GGUF}, and give its directory.")
    return ModelNotFoundError(
        f"{file} is a file. Give the directory of a checkpoint, with config.json and *.safetensors: {file.parent}?"
    )


def _of_nothing(directory: Path) -> ModelNotFoundError:
    hint = "Give the path of a downloaded checkpoint."
    if HUB_NAME.fullmatch(str(directory)):
        hint = (
            "If it is a name on the Hugging Face Hub: Pagoda downloads nothing. Download it "
            f"(hf download {directory} --local-dir DIRECTORY) and give that directory."
        )
    return ModelNotFoundError(f"There is no directory {directory}. {hint}")
