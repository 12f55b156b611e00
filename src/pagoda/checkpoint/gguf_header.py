"""What the header of a GGUF file says, checked against the size of the file before anything is made of it.

Knows versions, keys and the table of tensors. The reader of the package `gguf` makes an object of every token, which
takes half a minute for a large vocabulary, and believes what a file says of itself; it is not used. Of the package are
the names and sizes of types. Reads no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from pagoda.checkpoint.gguf_walk import COUNT, KIND, Field, Walk
from pagoda.errors import CorruptCheckpointError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
BIG_ENDIAN_MASK = 0xFFFF
# The largest vocabularies make headers of ten megabytes.
MAX_HEADER_NBYTES = 128 << 20
MAX_KEYS, MIN_KEY_NBYTES = 1 << 12, 13
MAX_TENSORS, MIN_TENSOR_NBYTES = 1 << 17, 32
MAX_NAME_NBYTES = 1 << 10
MAX_DIMENSIONS = 4  # ggml has no more
# Matrices of these are held as they are stored; what is no plain number and none of them is decoded.
CODED_TYPES = frozenset(
    (*("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), *("IQ4_NL", "IQ4_XS"))
)
USUAL_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20


class GgufTensor(NamedTuple):
    """Where a tensor lies and how. `shape` is as torch has it, rows first."""

    file: Path
    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The keys and tensors of one file."""

    file: Path
    fields: Mapping[str, Field]
    tensors: Mapping[str, GgufTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """What stands under a key, if that is short."""
        found = self.fields.get(key)
        return default if found is None or found.value is None else found.value

    @property
    def architecture(self) -> str:
        name = self.get("general.architecture")
        if not isinstance(name, str):
            raise CorruptCheckpointError(f"{self.file} does not say of which architecture it is.")
        return name


def read_gguf_header(file: Path) -> GgufHeader:
    """Raises CorruptCheckpointError, and UnsupportedModelError for other versions and unknown types."""
    try:
        nbytes = file.stat().st_size
        if nbytes < len(MAGIC):
            raise CorruptCheckpointError(f"{file} has {nbytes} bytes; it is no GGUF file.")
        with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            return _read(data, nbytes, file)
    except OSError as error:
        raise CorruptCheckpointError(f"{file} cannot be read: {error}") from error


def _read(data: mmap, nbytes: int, file: Path) -> GgufHeader:
    walk = Walk(data, min(nbytes, MAX_HEADER_NBYTES), file)
    if data[: len(MAGIC)] != MAGIC:
        raise CorruptCheckpointError(f"{file} does not begin as GGUF files do; is it something else, or damaged?")
    walk.place = len(MAGIC)
    _check_version(walk.number(KIND), file)
    num_tensors = walk.count("tensors", MAX_TENSORS, MIN_TENSOR_NBYTES)
    num_keys = walk.count("keys", MAX_KEYS, MIN_KEY_NBYTES)
    fields: dict[str, Field] = {}
    for _ in range(num_keys):
        key = walk.text(MAX_NAME_NBYTES)
        if key in fields:
            raise walk.wrong(f"it has {key!r:.100} twice")
        fields[key] = walk.field()
    alignment = _alignment(fields, walk)
    told = [_told_tensor(walk, alignment) for _ in range(num_tensors)]
    start = -(-walk.place // alignment) * alignment
    tensors = {each.name: each._replace(start=start + each.start) for each in told}
    if len(tensors) != len(told):
        raise walk.wrong("it has two tensors of one name")
    _check_room(tensors, nbytes, file)
    return GgufHeader(file, fields, tensors)


def _check_version(version: int, file: Path) -> None:
    if version and not version & BIG_ENDIAN_MASK:
        raise UnsupportedModelError(f"{file} is a GGUF file for processors of the other byte order; take another.")
    if version not in VERSIONS:
        raise UnsupportedModelError(f"{file} is a GGUF file of version {version}; versions 2 and 3 are read.")


def _alignment(fields: Mapping[str, Field], walk: Walk) -> int:
    found = fields.get("general.alignment")
    alignment = USUAL_ALIGNMENT if found is None else found.value
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise walk.wrong(f"it has the alignment {alignment!r:.50}")
    return alignment


def _told_tensor(walk: Walk, alignment: int) -> GgufTensor:
    """The next one in the table, which starts so many bytes after the header."""
    name = walk.text(MAX_NAME_NBYTES)
    num_dimensions = walk.number(KIND)
    if num_dimensions > MAX_DIMENSIONS:
        raise walk.wrong(f"{name!r:.100} has {num_dimensions} dimensions")
    shape = tuple(reversed([int(walk.number(COUNT)) for _ in range(num_dimensions)]))
    type_name, nbytes = _stored_as(walk.number(KIND), shape, name, walk)
    start = int(walk.number(COUNT))
    if start % alignment:
        raise walk.wrong(f"{name!r:.100} starts at byte {start}, which is not aligned")
    return GgufTensor(walk.file, name, type_name, shape, start, nbytes)


def _stored_as(number: int, shape: tuple[int, ...], name: str, walk: Walk) -> tuple[str, int]:
    """The name of a type, and how many bytes a tensor of it has."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        block, block_nbytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"{name!r:.100} in the GGUF file has the type {number}, which is unknown."
        ) from error
    if not all(shape) or (shape and shape[-1] % block):
        raise walk.wrong(f"{name!r:.100} of type {kind.name} has the shape {list(shape)}")
    return kind.name, prod(shape) // block * block_nbytes


def _check_room(tensors: Mapping[str, GgufTensor], nbytes: int, file: Path) -> None:
    """All tensors lie in the file, and not one over the other."""
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise CorruptCheckpointError(f"{file} has {tensor.name!r:.100} where another tensor lies.")
        end = tensor.start + tensor.nbytes
        if end > nbytes:
            raise CorruptCheckpointError(
                f"{file} is cut off: it has {nbytes} bytes, and {tensor.name!r:.100} ends at byte {end}."
            )
