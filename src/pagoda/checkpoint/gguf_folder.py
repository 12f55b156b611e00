"""A GGUF model as a directory like those of Hugging Face: what all code that reads checkpoints takes.

It consists of links to the weights, links to the files of a checkpoint that their owner has put beside them, and files
with what the GGUF file says where there are none. It is made once and kept in the cache folder, under a name that is
another as soon as any of those files is, or the code that reads them. Those of files that have changed, or are gone, go
when another is made. Without a cache folder it lasts as long as the process.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
from collections.abc import Iterable
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from pagoda import __version__
from pagoda.checkpoint.gguf_description import CHAT_TEMPLATE, CONFIG, GENERATION, VOCABULARY, describe
from pagoda.checkpoint.gguf_files import gguf_parts, model_stem, read_gguf
from pagoda.config import Environment

logger = logging.getLogger(__name__)

FOLDER = "gguf"
MARK = ".pagoda-gguf.json"
ABOUT = "Made by pagoda from the GGUF file that is linked here. It may be deleted, and is made again when it is needed."
SCHEME = 1  # of what is written here: another number whenever that changes
DIGEST_NBYTES = 8
MAX_STEM_LENGTH = 100  # of names that tell people what a folder is of
# A tokenizer is taken whole from one place: from beside the weights if any of the first is there.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
OF_TOKENIZER = (
    *VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
)
ALONE = (CONFIG, GENERATION, CHAT_TEMPLATE, "preprocessor_config.json", "processor_config.json")


def gguf_folder(file: Path) -> Path:
    """The directory for the model that `file` is, or is a part of. Raises a ModelError."""
    files = tuple(each.absolute() for each in gguf_parts(file))
    beside = _beside(files[0].parent)
    name = f"{model_stem(files[0])[:MAX_STEM_LENGTH]}-{_key([*files, *beside])}"
    kept = Environment.read().cache_folder
    if kept is None:
        return _temporary(name, files, beside)
    folder = kept / FOLDER / name
    if (folder / MARK).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as scratch:
            whole = _make(Path(scratch) / name, files, beside)
            if not folder.exists():
                whole.replace(folder)
                _remove_outdated(folder.parent)
    except OSError as error:
        if not (folder / MARK).is_file():  # which another process may have made meanwhile
            logger.info("What %s says is not kept: %s", file, error)
            return _temporary(name, files, beside)
    return folder


def is_gguf_folder(directory: Path) -> bool:
    """Whether it was made here."""
    return (directory / MARK).is_file()


def _temporary(name: str, files: tuple[Path, ...], beside: list[Path]) -> Path:
    scratch = mkdtemp(prefix="pagoda-gguf-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return _make(Path(scratch) / name, files, beside)


def _make(folder: Path, files: tuple[Path, ...], beside: list[Path]) -> Path:
    model = read_gguf(files)
    names = {file.name for file in beside}
    has_tokenizer = VOCABULARY in model.header.fields and not names & {*VOCABULARIES}
    texts = describe(model, of_config=CONFIG not in names, of_tokenizer=has_tokenizer)
    folder.mkdir()
    for file in (*files, *beside):
        (folder / file.name).symlink_to(file)
    for name in texts.keys() - names:
        (folder / name).write_text(texts[name], encoding="utf-8")
    states = {str(file): _state(file) for file in (*files, *beside)}
    (folder / MARK).write_text(json.dumps({"about": ABOUT, "files": states}, indent=1), encoding="utf-8")
    return folder


def _remove_outdated(kept: Path) -> None:
    """Those folders in `kept` that nobody will find again, since a file has changed that they were made from."""
    for mark in kept.glob(f"*/{MARK}"):
        try:
            states = json.loads(mark.read_text(encoding="utf-8"))["files"].items()
            is_outdated = any(not Path(file).is_file() or [*_state(Path(file))] != state for file, state in states)
        except (OSError, ValueError, KeyError, AttributeError):
            continue  # of another process that removes it, or of an earlier version
        if is_outdated:
            shutil.rmtree(mark.parent, ignore_errors=True)


def _beside(directory: Path) -> list[Path]:
    """The files of a checkpoint in `directory` that win over what the GGUF file says."""
    has_tokenizer = any((directory / name).is_file() for name in VOCABULARIES)
    names = (*ALONE, *OF_TOKENIZER) if has_tokenizer else ALONE
    return [directory / name for name in names if (directory / name).is_file()]


def _key(files: Iterable[Path]) -> str:
    """Of the state of files, and of the code that reads them."""
    told = [(str(file), *_state(file)) for file in files]
    code = (SCHEME, __version__, version("transformers"), version("gguf"))
    return blake2b(repr((code, told)).encode(), digest_size=DIGEST_NBYTES).hexdigest()


def _state(file: Path) -> tuple[int, ...]:
    """Nobody can change a file and leave it in the same state: who sets its time back changes the last."""
    told = file.stat()
    return told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino
