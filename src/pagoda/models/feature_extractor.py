"""What makes features of sound for the model of a checkpoint directory: Whisper's, as only its models read sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import WhisperFeatureExtractor

from pagoda.checkpoint.failures import model_errors
from pagoda.checkpoint.files import read_object
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError
from pagoda.models.quiet import quiet

# A table is made of the first two, and every sound is filled up to the product of the last two.
LARGEST = {
    "feature_size": 1 << 10,
    "n_fft": 1 << 16,
    "hop_length": 1 << 16,
    "chunk_length": 3600,
    "sampling_rate": 1 << 20,
}


def load_feature_extractor(directory: Path) -> Any | None:
    """The feature extractor in `directory`, or None if there is none."""
    with model_errors(f"The feature extractor in {directory}"):
        file, values = _settings(directory)
        if file is None:
            return None
        kind = values.pop("feature_extractor_type", None)
        if kind not in (None, "WhisperFeatureExtractor"):
            raise UnsupportedModelError(f"{file} names {kind!r:.200}; Pagoda knows WhisperFeatureExtractor.")
        for name, most in LARGEST.items():
            if name in values and not (isinstance(values[name], int) and 0 < values[name] <= most):
                raise CorruptCheckpointError(f"{file} has {name} {values[name]!r:.50}; it is between 1 and {most}.")
        with quiet():
            return WhisperFeatureExtractor.from_dict(values)


def _settings(directory: Path) -> tuple[Path | None, dict[str, Any]]:
    """The file that describes it, and how: a part of the processor's, or a file of its own."""
    processor, own = directory / "processor_config.json", directory / "preprocessor_config.json"
    part = read_object(processor).get("feature_extractor") if processor.is_file() else None
    if isinstance(part, dict):
        return processor, part
    return (own, read_object(own)) if own.is_file() else (None, {})
