"""The tokenizer and the feature extractor of a checkpoint directory, as transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoTokenizer

from pagoda.errors import CorruptCheckpointError
from pagoda.models.quiet import quiet

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)


def load_tokenizer(path: str | Path) -> Any | None:
    """The tokenizer in `path`, or None if the directory has none."""
    return _load(AutoTokenizer, "tokenizer", Path(path), TOKENIZER_FILES)


def load_feature_extractor(path: str | Path) -> Any | None:
    """What makes features of sound for the model in `path`, or None if the directory does not say."""
    return _load(AutoFeatureExtractor, "feature extractor", Path(path), ("preprocessor_config.json",))


def _load(loader: Any, what: str, path: Path, files: tuple[str, ...]) -> Any | None:
    """What `loader` of transformers makes of a directory that has one of `files`."""
    directory = path.expanduser()
    if not any((directory / name).is_file() for name in files):
        return None
    try:
        with quiet():
            return loader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CorruptCheckpointError(f"The {what} in {directory} cannot be loaded: {error}") from error
