"""Files of a checkpoint, read under limits.

Knows which names of files may lead to others: plain ones, of files beside them. Links are followed, since the caches of
Hugging Face consist of them and only who owns the directory can make one; a name that stands in a file came with the
checkpoint, from whoever published it. Does not know what the files mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pagoda.errors import CorruptCheckpointError

# Configurations have some kilobytes; those that list every module of a large model have hundreds.
MAX_CONFIG_NBYTES = 4 << 20
# Lists take more memory than text for them; where there are most, in merges of a tokenizer, one has 20 bytes of text.
NBYTES_PER_LIST = 10


def read_object(file: Path, max_nbytes: int = MAX_CONFIG_NBYTES) -> dict[str, Any]:
    """The JSON object in `file`. Raises CorruptCheckpointError."""
    text = read_bytes(file, max_nbytes)
    if text.count(b"[") + text.count(b"{") > max_nbytes // NBYTES_PER_LIST:
        raise CorruptCheckpointError(f"{file} has more lists and objects than any right file of its kind.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(values).__name__}, not an object.")
    return values


def read_bytes(file: Path, max_nbytes: int) -> bytes:
    """What `file` holds, if it is a file and not larger."""
    try:
        if not file.is_file():
            raise CorruptCheckpointError(f"{file} is not a file.")
        with file.open("rb") as stream:
            content = stream.read(max_nbytes + 1)
    except OSError as error:
        raise CorruptCheckpointError(f"{file} cannot be read: {error}") from error
    if len(content) > max_nbytes:
        raise CorruptCheckpointError(f"{file} has more than {max_nbytes} bytes, which no right file of its kind has.")
    return content


def file_beside(source: Path, name: Any, endings: tuple[str, ...]) -> Path:
    """The file that an entry of `source` names. Raises CorruptCheckpointError unless the name is plain and so ends."""
    if not isinstance(name, str) or not name.endswith(endings) or Path(name).name != name or "\\" in name:
        raise CorruptCheckpointError(
            f"{source} names {name!r:.200}; only files beside it are read, by plain names that end in "
            f"{' or '.join(endings)}."
        )
    file = source.parent / name
    if not file.is_file():
        raise CorruptCheckpointError(f"{source} names {name!r:.200}, which is missing; the weights cannot be read.")
    return file
