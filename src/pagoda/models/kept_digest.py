"""Keeps the digest of a checkpoint's weights in a file beside them, so that the next start need not read every byte.

What is kept is taken for right only if all that decided it is as it was: the files that weights come from, told apart
by what nobody can set (the time of their last change of any kind), the code that loaded them, and an outline of what
it made of them. Anything else is computed, and kept instead. Networks that did not come from files, or were changed
since, are never looked up.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers

from pagoda import __version__
from pagoda.checkpoint.files import read_object
from pagoda.coded.layers import coded_weights
from pagoda.errors import CorruptCheckpointError
from pagoda.models.digest import DIGEST_NBYTES, config_digest, outline_digest, weights_digest, weights_mark

logger = logging.getLogger(__name__)

FILE_NAME = ".pagoda-weights-digest.json"
SCHEME = 1  # of what a digest covers and of this file: another number whenever `weights_digest` changes
ABOUT = "The digest of the weights in this folder, so that pagoda need not compute it again. It may be deleted."
MAX_NBYTES = 1 << 20
# Of smaller weights a digest takes less time than anybody notices.
WORTH_NBYTES = 64 << 20
# A file that is changed twice within the resolution of its times looks as after the first change.
SETTLED_SECONDS = 3.0


class FileState(NamedTuple):
    """Nobody can change a file and leave it in the same state: who sets `mtime_ns` back changes `ctime_ns`."""

    nbytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True)
class WeightFiles:
    """Files in `directory`, by name, in the state they were in at `looked_at` (seconds since 1970)."""

    directory: Path
    states: Mapping[str, FileState]
    looked_at: float

    @classmethod
    def look(cls, directory: Path, files: Iterable[Path]) -> WeightFiles:
        """To be called before the files are opened; links are followed. Raises OSError."""
        now, told = time.time(), {file.name: file.stat() for file in files}
        states = {
            name: FileState(each.st_size, each.st_mtime_ns, each.st_ctime_ns, each.st_ino)
            for name, each in told.items()
        }
        return cls(directory, states, now)

    @property
    def are_settled(self) -> bool:
        """Whether a change after that look would show."""
        latest = max((max(each.mtime_ns, each.ctime_ns) for each in self.states.values()), default=0)
        return latest / 1e9 + SETTLED_SECONDS <= self.looked_at

    def are_unchanged(self) -> bool:
        """Since then."""
        try:
            return self.look(self.directory, (self.directory / name for name in self.states)).states == self.states
        except OSError:
            return False


@dataclass(frozen=True)
class Origin:
    """The files that the parameters of a network are from, and a mark of them as they were loaded."""

    files: WeightFiles
    mark: int

    @classmethod
    def of(cls, files: WeightFiles, network: torch.nn.Module) -> Origin:
        return cls(files, weights_mark(network.parameters()))

    def is_still_of(self, network: torch.nn.Module) -> bool:
        """Whether neither files nor parameters were changed since, as far as that shows."""
        return self.files.are_unchanged() and weights_mark(network.parameters()) == self.mark


def kept_weights_digest(network: Any, origin: Origin | None) -> str:
    """As `weights_digest`, from the file beside the weights if that is certain to be right."""
    nbytes = sum(each.nbytes for each in (*network.parameters(), *coded_weights(network).values()))
    if origin is None or nbytes < WORTH_NBYTES or not origin.is_still_of(network):
        return weights_digest(network)
    file, decided_by = origin.files.directory / FILE_NAME, _decided_by(network, origin.files)
    kept = _read(file, decided_by)
    if kept is not None:
        return kept
    digest = weights_digest(network)
    if origin.files.are_settled and origin.is_still_of(network):
        _write(file, _record(decided_by, digest))
    return digest


def _decided_by(network: Any, files: WeightFiles) -> dict[str, Any]:
    """All that a digest depends on, short of the bytes of the weights themselves."""
    return {
        "scheme": SCHEME,
        "versions": {"pagoda": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "configuration": config_digest(network.config),
        "outline": outline_digest(network),
        "files": {name: state._asdict() for name, state in files.states.items()},
    }


def _record(decided_by: Mapping[str, Any], digest: str) -> dict[str, Any]:
    record = {"about": ABOUT, **decided_by, "weights": digest}
    check = blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=DIGEST_NBYTES).hexdigest()
    return record | {"check": check}


def _read(file: Path, decided_by: Mapping[str, Any]) -> str | None:
    """The digest in `file`, if that says exactly what would be written now."""
    try:
        told = read_object(file, MAX_NBYTES)
    except CorruptCheckpointError as error:
        logger.debug("No digest of weights is kept: %s", error)
        return None
    digest = told.get("weights")
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{2 * DIGEST_NBYTES}}}", digest):
        return None
    return digest if told == _record(decided_by, digest) else None


def _write(file: Path, record: Mapping[str, Any]) -> None:
    try:
        with TemporaryDirectory(dir=file.parent, prefix=f"{FILE_NAME}.") as folder:
            whole = Path(folder) / "whole"
            whole.write_text(json.dumps(record, indent=1), encoding="utf-8")
            whole.replace(file)
    except OSError as error:
        logger.debug("The digest of weights is not kept: %s", error)
