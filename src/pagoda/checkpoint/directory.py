"""From the path that a user gives to the directory of a checkpoint, or to an error that says what is there instead.

Knows what people give where a directory is wanted, and what other formats look like. A GGUF file, or a directory with
one in place of safetensors, stands for the directory that is made of it (`gguf_folder.py`). Reads no other file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pagoda.checkpoint.failures import model_errors
from pagoda.checkpoint.gguf_files import ENDING, gguf_in, gguf_parts, model_stem
from pagoda.checkpoint.gguf_folder import gguf_folder, is_gguf_folder
from pagoda.errors import ConfigError, ModelNotFoundError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PICKLES = "these are pickles, which can run code; convert them to safetensors"
ADAPTER = "this is an adapter; merge it into its base model (merge_and_unload of peft) and give what that saves"
# What is in directories without a checkpoint, and what to do about it.
OTHER_FORMATS = {
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
        is_directory, is_file = directory.is_dir(), directory.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelNotFoundError(
            f"{text!r:.200} cannot be looked at: {error}. Give a downloaded checkpoint."
        ) from error
    if not is_directory and not is_file:
        raise _of_nothing(directory)
    weights = gguf_file(directory)
    if weights is not None:
        with model_errors(f"The model in {weights}"):
            return gguf_folder(weights)
    if is_file:
        raise _of_file(directory)
    return directory


def gguf_file(path: Path) -> Path | None:
    """The GGUF file, or the first of its parts, whose model the file or directory at `path` stands for."""
    if path.is_file():
        return path if path.suffix == ENDING else None
    if is_gguf_folder(path) or any(path.glob("*.safetensors")):
        return None
    return next(iter(gguf_in(path)), None)


def weights_nbytes(path: Path) -> int:
    """Of the files with the weights of the model at `path`."""
    weights = gguf_file(path)
    files = path.glob("*.safetensors") if weights is None else gguf_parts(weights)
    return sum(file.stat().st_size for file in files)


def model_name(path: Path) -> str:
    """What people call the model at `path`."""
    return model_stem(path) if path.suffix == ENDING else path.name


def other_format(directory: Path) -> str:
    """What to do with what is in `directory` instead of a checkpoint, as a sentence; empty if nothing is known."""
    for pattern, hint in OTHER_FORMATS.items():
        if any(directory.glob(pattern)):
            return f" It has {pattern}: {hint}."
    return ""


def _of_file(file: Path) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{file} is a file. Give a GGUF file, or the directory of a checkpoint, with config.json and *.safetensors: "
        f"{file.parent}?"
    )


def _of_nothing(directory: Path) -> ModelNotFoundError:
    hint = "Give the path of a downloaded checkpoint."
    if HUB_NAME.fullmatch(str(directory)):
        hint = (
            "If it is a name on the Hugging Face Hub: Pagoda downloads nothing. Download it "
            f"(hf download {directory} --local-dir DIRECTORY) and give that directory."
        )
    return ModelNotFoundError(f"There is no directory {directory}. {hint}")
