"""GGUF files that are one model: a file, the parts of a split one, or what a folder has.

Knows the names that gguf gives to parts, and what the parts say of each other. Does not know what is in tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pagoda.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from pagoda.errors import CorruptCheckpointError, ModelNotFoundError

ENDING = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
# Parts of models that see and hear, which lie beside what generates text.
PROJECTORS = "mmproj"


@dataclass(frozen=True)
class GgufModel:
    """What the files of one model say; keys are those of the first."""

    header: GgufHeader
    files: tuple[Path, ...]
    tensors: Mapping[str, GgufTensor]

    @property
    def name(self) -> str:
        return model_stem(self.files[0])


def read_gguf(files: Iterable[Path]) -> GgufModel:
    """The headers of all `files` of a model."""
    headers = [read_gguf_header(file) for file in files]
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        own, count = header.get("split.no", 0), header.get("split.count", 1) or 1
        if own != number or count != len(headers):
            raise CorruptCheckpointError(
                f"{header.file} says that it is part {own!r:.20}, from 0, of {count!r:.20}, and stands for "
                f"part {number} of {len(headers)}; give the parts the names that they had."
            )
        twice = tensors.keys() & header.tensors
        if twice:
            raise CorruptCheckpointError(f"{header.file} has {min(twice)!r:.100}, which another part has too.")
        tensors |= header.tensors
    stated = headers[0].get("split.tensors.count", 0)
    if stated not in (0, len(tensors)):
        raise CorruptCheckpointError(f"{headers[0].file} and its other parts have {len(tensors)} of {stated} tensors.")
    return GgufModel(headers[0], tuple(header.file for header in headers), tensors)


def gguf_parts(file: Path) -> tuple[Path, ...]:
    """All files of the model that `file` is, or is a part of."""
    part = PART.fullmatch(file.name)
    if part is None:
        return (file,)
    count = int(part["count"])
    parts = [file.with_name(f"{part['stem']}-{number:05}-of-{part['count']}.gguf") for number in range(1, count + 1)]
    missing = [each.name for each in parts if not each.is_file()]
    if missing or not 0 < int(part["number"]) <= count:
        named = ", ".join(missing[:3]) or file.name
        raise CorruptCheckpointError(f"{file} is one of {count} parts, and there is no {named} beside it.")
    return tuple(parts)


def gguf_in(directory: Path) -> tuple[Path, ...]:
    """The files of the only GGUF model in `directory`; none if there is none. ModelNotFoundError for several."""
    files = sorted(file for file in directory.glob(f"*{ENDING}") if not file.name.startswith(PROJECTORS))
    models = {model_stem(file): file for file in reversed(files) if file.is_file()}
    if len(models) > 1:
        names = ", ".join(file.name for _, file in sorted(models.items()))
        raise ModelNotFoundError(f"{directory} has several GGUF models; give the file of one: {names}.")
    return gguf_parts(*models.values()) if models else ()


def model_stem(file: Path) -> str:
    """The name of a model by that of one of its files."""
    part = PART.fullmatch(file.name)
    return part["stem"] if part else file.name.removesuffix(ENDING)
