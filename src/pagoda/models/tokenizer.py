"""The tokenizer and the feature extractor of a checkpoint directory, as transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoTokenizer

from pagoda.errors import CorruptCheckpointError
from pagoda.models.quiet import quiet

_feature_extractors: Any = AutoFeatureExtractor
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
    directory = Path(path).expanduser()
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CorruptCheckpointError(f"The tokenizer in {directory} cannot be loaded: {error}") from error


def load_feature_extractor(path: str | Path) -> Any | None:
    """What makes features of sound for the model in `path`, or None if the directory does not say."""
    directory = Path(path).expanduser()
    if not (directory / "preprocessor_config.json").is_file():
        return None
    try:
        with quiet():
            return _feature_extractors.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CorruptCheckpointError(f"The feature extractor in {directory} cannot be loaded: {error}") from error
