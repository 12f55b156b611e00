"""The files with the weights of a checkpoint, and how much their headers say is in them; reads no tensor.

Knows safetensors, single or sharded by an index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pagoda.checkpoint.directory import other_format
from pagoda.checkpoint.files import file_beside, read_object
from pagoda.errors import CorruptCheckpointError, ModelNotFoundError, UnsupportedModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ENDINGS = (".safetensors", ".safetensors.index.json")
# A name for each tensor; those with the most, a hundred thousand unfused experts, have tens of megabytes.
MAX_INDEX_NBYTES = 64 << 20
# A hundred bytes for each tensor, in each file and in all. What is read from them takes twenty times as much.
MAX_HEADER_NBYTES = 16 << 20
MAX_HEADERS_NBYTES = 64 << 20
HEADER_LENGTH_NBYTES = 8
MAX_NAME_LENGTH = 1024
MAX_DIMENSIONS = 8
# No tensor can have more numbers along one dimension, with or without any along the others.
MAX_SIZE = 1 << 40
# In torch's names, by those of safetensors.
FLOAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OTHER_TYPES = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F8_E4M3", "F8_E5M2"}
BITS_IN_NAME = re.compile(r"(?:BF|[FIU])(\d+)")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Outline:
    """How much there is: tensors, numbers in all, the longest dimension, and the largest number in a tensor's name."""

    num_tensors: int
    num_elements: int
    largest_size: int
    largest_number: int
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> Outline:
        numbers = (int(number) for name in shapes for number in re.findall(r"(?<![^.])\d{1,9}(?![^.])", name))
        filled = [shape for shape in shapes.values() if prod(shape)]
        sizes = (size for shape in filled for size in shape)
        return cls(len(filled), sum(map(prod, filled)), max(sizes, default=0), max(numbers, default=0), shapes)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Any]) -> Outline:
        """Of tensors that were opened and not read."""
        return cls.of({name: tuple(tensor.get_shape()) for name, tensor in tensors.items()})


def stored_nbytes(tensor: Any) -> int:
    """Of a tensor that was opened and not read: safetensors allows no gap, and names types by their bits."""
    bits = BITS_IN_NAME.match(tensor.get_dtype())
    return prod(map(int, tensor.get_shape())) * (int(bits[1]) // 8 if bits else 1)


@contextmanager
def stored_tensors(config_file: Path, values: Mapping[str, Any], framework: str) -> Iterator[dict[str, Any]]:
    """The tensors beside `config_file`, which holds `values`, by name. Their files are open meanwhile.

    They are opened for a `framework` of safetensors: "pt" is torch, "np" numpy. Nothing is read but what they are.
    """
    files, index = _weight_files(config_file, values)
    with ExitStack() as stack:
        yield _tensors(files, index, framework, stack)


def header_texts(config_file: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """What the headers of the files beside `config_file`, which holds `values`, say besides tensors, by name.

    Of several files the last has the say, as in transformers.
    """
    texts: dict[str, str] = {}
    with ExitStack() as stack:
        for file in _weight_files(config_file, values)[0]:
            texts |= _open(file, "np", stack).metadata() or {}
    return texts


def weight_files(config_file: Path, values: Mapping[str, Any]) -> list[Path]:
    """The files beside `config_file`, which holds `values`, that decide what weights are: with an index of them."""
    named = values.get("transformers_weights")
    main = _main_file(config_file.parent) if named is None else file_beside(config_file, named, ENDINGS)
    return [main, *_indexed(main)[0]] if main.suffix == ".json" else [main]


def _weight_files(config_file: Path, values: Mapping[str, Any]) -> tuple[list[Path], dict[str, str]]:
    """The files beside `config_file`, which holds `values`, and which of them an index says that tensors are in."""
    named = values.get("transformers_weights")
    main = _main_file(config_file.parent) if named is None else file_beside(config_file, named, ENDINGS)
    files, index = _indexed(main) if main.suffix == ".json" else ([main], {})
    _check_headers(files)
    return files, index


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


def _tensors(files: list[Path], index: Mapping[str, str], framework: str, stack: ExitStack) -> dict[str, Any]:
    """The tensors in `files`. One that is in several is taken from where the index has it."""
    tensors: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for file in files:
        opened = _open(file, framework, stack)
        for name in opened.keys():  # noqa: SIM118 - not a dictionary
            holder = index.get(name)
            if name in owners and holder not in (owners[name], file.name):
                raise CorruptCheckpointError(f"{file.parent} has {name:.200} in {owners[name]} and in {file.name}.")
            if name not in owners or holder == file.name:
                tensors[name], owners[name] = opened.get_slice(name), file.name
                _check_tensor(file, name, tensors[name])
    return tensors


def _open(file: Path, framework: str, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework=framework, device="cpu", backend="mmap"))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CorruptCheckpointError(f"The weights in {file} cannot be read: {error}") from error


def _check_tensor(file: Path, name: str, tensor: Any) -> None:
    """Refuse what the format allows and no network has."""
    shape, stored_as = tensor.get_shape(), tensor.get_dtype()
    if len(name) > MAX_NAME_LENGTH or len(shape) > MAX_DIMENSIONS or any(size > MAX_SIZE for size in shape):
        raise CorruptCheckpointError(
            f"{file} has {name!r:.200} with {len(shape)} dimensions ({', '.join(map(str, shape[:MAX_DIMENSIONS]))}); "
            "no network has such a tensor."
        )
    if stored_as not in FLOAT_NAMES and stored_as not in OTHER_TYPES:
        raise UnsupportedModelError(f"{file} has {name} in {stored_as}; use a checkpoint in bf16, fp16 or fp32.")
