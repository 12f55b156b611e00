"""The weights of a checkpoint: the tensors in its safetensors files, and a network of transformers filled with them.

Transformers is never given the directory, where it would follow other entries of the configuration and read pickles:
it is given a configuration and tensors. Knows safetensors, single or sharded by an index. Does not know whether tensors
and configuration fit each other (`plausible.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pagoda.checkpoint.weights import FLOAT_NAMES, Outline, stored_nbytes, stored_tensors, weight_files
from pagoda.errors import CorruptCheckpointError
from pagoda.models.attention import ATTENTION_NAME
from pagoda.models.build import network_class
from pagoda.models.kept_digest import WeightFiles
from pagoda.models.own_attention import interface_name
from pagoda.models.quiet import quiet

FLOATS: dict[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in FLOAT_NAMES.items()}


class StoredWeights:
    """The tensors in the files of a checkpoint, by name; their values are read when they are asked for."""

    def __init__(self, files: WeightFiles, tensors: Mapping[str, Any]) -> None:
        self.files = files
        self._directory = files.directory
        self._tensors = tensors
        self.outline = Outline.of_tensors(tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor of real numbers, as transformers takes it where a configuration does not say."""
        found = (FLOATS.get(tensor.get_dtype()) for tensor in self._tensors.values())
        return next((dtype for dtype in found if dtype is not None), torch.float32)

    @property
    def stated(self) -> dict[str, Any]:
        """What they say of the configuration: nothing."""
        return {}

    def stored_nbytes(self, name: str) -> int:
        return stored_nbytes(self._tensors[name])

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored. Raises CorruptCheckpointError."""
        return read_tensor(self._tensors, name, self._directory)

    def load(self, config: Any, dtype: torch.dtype | None) -> Any:
        """A network of `config` with these weights, which attends through Pagoda; None keeps the type they have."""
        _, own_config = network_class(config)
        return fill(config, dict(self._tensors), dtype or own_config.dtype or self.dtype, self._directory)


def fill(config: Any, tensors: dict[str, Any], dtype: torch.dtype, source: Path) -> Any:
    """A network of `config` with `tensors` from `source`, which attends through Pagoda."""
    build, own_config = network_class(config)
    try:
        with quiet():
            network, report = build.from_pretrained(
                None,
                config=own_config,
                state_dict=tensors,
                dtype=dtype,
                attn_implementation=interface_name(config, ATTENTION_NAME),
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # to name them below; transformers names them in a log line only
                output_loading_info=True,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CorruptCheckpointError(f"The weights in {source} cannot be read: {error}") from error
    _check_report(source, report)
    network.config.name_or_path = str(source)
    return network.eval()


@contextmanager
def stored_weights(config_file: Path, values: Mapping[str, Any]) -> Iterator[StoredWeights]:
    """The weights beside `config_file`, which holds `values`; their files are open meanwhile."""
    files = WeightFiles.look(config_file.parent, weight_files(config_file, values))
    with stored_tensors(config_file, values, "pt") as tensors:
        yield StoredWeights(files, tensors)


def read_tensor(tensors: Mapping[str, Any], name: str, source: Path) -> torch.Tensor:
    """One of `tensors`, which are opened and of `source`. Raises CorruptCheckpointError."""
    try:
        tensor: torch.Tensor = tensors[name][...]
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CorruptCheckpointError(f"{name} in {source} cannot be read: {error}") from error
    return tensor


def _check_report(source: Path, report: dict[str, Any]) -> None:
    """Refuse weights that transformers would have filled with random numbers."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise CorruptCheckpointError(f"{source} lacks {len(missing)} weights of the model: {abridged(missing)}.")
    mismatched = sorted(
        f"{name} {list(stored)} instead of {list(wanted)}" for name, stored, wanted in report["mismatched_keys"]
    )
    if mismatched:
        raise CorruptCheckpointError(f"Weights in {source} have the wrong shape: {abridged(mismatched)}.")
    if report["error_msgs"]:
        raise CorruptCheckpointError(f"The weights in {source} cannot be read: {abridged(report['error_msgs'])}.")


def abridged(names: list[str]) -> str:
    """The first of them, and how many there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
