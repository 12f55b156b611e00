"""The files with the weights of a checkpoint, and how much their headers say is in them; reads no tensor.

Knows safetensors, single or sharded by an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pagoda.checkpoint.directory import other_format
from pagoda.checkpoint.files import file_beside, read_object
from pagoda.errors import CorruptCheckpointError, ModelNotFoundError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ENDINGS = (".safetensors", ".safetensors.index.json")
# A name for each tensor; those with the most, a hundred thousand unfused experts, have tens of megabytes.
MAX_INDEX_NBYTES = 64 << 20
# A hundred bytes for each tensor, in each file and in all. What is read from them takes twenty times as much.
MAX_HEADER_NBYTES = 16 << 20
MAX_HEADERS_NBYTES = 64 << 20
HEADER_LENGTH_NBYTES = 8
# In torch's names, by those of safetensors.
FLOAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredNumbers:
    """How many real numbers there are in the files, and the type of the first tensor of such."""

    count: int
    dtype: str | None


def weight_files(config_file: Path, values: Mapping[str, Any]) -> tuple[list[Path], dict[str, str]]:
    """The files beside `config_file`, which holds `values`, and which of them an index says that tensors are in."""
    named = values.get("transformers_weights")
    main = _main_file(config_file.parent) if named is None else file_beside(config_file, named, ENDINGS)
    files, index = _indexed(main) if main.suffix == ".json" else ([main], {})
    _check_headers(files)
    return files, index


def stored_numbers(files: list[Path]) -> StoredNumbers:
    """What the headers of `files` say; a tensor that is in several counts once."""
    counts: dict[str, int] = {}
    first = None
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                    tensor = tensors.get_slice(name)
                    dtype = FLOAT_NAMES.get(tensor.get_dtype())
                    counts[name] = prod(tensor.get_shape()) if dtype else 0
                    first = first or dtype
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CorruptCheckpointError(f"The weights in {file} cannot be read: {error}") from error
    return StoredNumbers(sum(counts.values()), first)


def _main_file(directory: Path) -> Path:
    """The file with all weights, or the index of several."""
    found = next((directory / name for name in (SINGLE, INDEX) if (directory / name).is_file()), None)
    if found is None:
        raise _no_weights(directory)
    return found


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that an index names, and the name of the file with each tensor."""
    names = read_object(index, MAX_INDEX_NBYTES).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CorruptCheckpointError(f"{index} has no weight_map, which names the file of every tensor.")
    plain = [file_beside(index, name, (".safetensors",)) for name in _distinct(names.values())]
    return sorted(plain), names


def _distinct(names: Iterable[Any]) -> list[Any]:
    """Each of them once; what is no name is left to who reads them."""
    return list({repr(name): name for name in names}.values())


def _no_weights(directory: Path) -> ModelNotFoundError:
    if any(not file.name.startswith("adapter") for file in directory.glob("*.safetensors")):
        return ModelNotFoundError(
            f"{directory} has *.safetensors files, but neither {SINGLE} nor {INDEX}, which says what is in which."
        )
    return ModelNotFoundError(
        f"{directory} has no *.safetensors file; Pagoda reads weights in that format only.{other_format(directory)}"
    )


def _check_headers(files: list[Path]) -> None:
    """Refuse headers that take much more memory to read than those of any model."""
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                nbytes = int.from_bytes(stream.read(HEADER_LENGTH_NBYTES), "little")
        except OSError as error:
            raise CorruptCheckpointError(f"The weights in {file} cannot be read: {error}") from error
        total += nbytes
        if nbytes > MAX_HEADER_NBYTES or total > MAX_HEADERS_NBYTES:
            raise CorruptCheckpointError(
                f"The weights in {file} cannot be read: they begin with a header of {nbytes} bytes, more than any "
                "model has."
            )
