"""The tokenizer of a checkpoint directory, as transformers loads it.

Files of a tokenizer are looked at before transformers reads them: which other files and classes they name, how large
they are, and what they make of a text (`tokenizer_file.py`). One of which it is not clear that it does no harm is tried
in a child process (`tokenizer_trial.py`).
"""

from __future__ import annotations

from contextlib import closing, suppress
from json import dumps, loads
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.checkpoint.failures import model_errors
from pagoda.checkpoint.files import file_beside, read_object
from pagoda.confined.errors import ConfinedError, FunctionError
from pagoda.confined.pool import Confined
from pagoda.errors import CorruptCheckpointError
from pagoda.models.quiet import quiet
from pagoda.models.tokenizer_file import check_growth, check_token_ids, check_vocabulary, is_plain

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
# Files that transformers may read for one, by what their names end in. The largest vocabularies have 60 MB.
READ_ENDINGS = (".json", ".jinja", ".model", ".txt", ".spm", ".codes", ".tiktoken", ".vocab")
MAX_VOCABULARY_NBYTES = 96 << 20
# Entries by which settings would have other files read, besides those that end in _file.
FILE_ENTRIES = ("vocab", "merges", "tokenizer_object", "name_or_path")
VERSIONS = "fast_tokenizer_files"

SAMPLE = "Pages, in tiers:\n\tà é 中文 🌶 1234 <s>"

TRIAL = "pagoda.models.tokenizer_trial:try_out"
TRIAL_SECONDS = 10.0
TRIAL_NBYTES = 2 << 30


def load_tokenizer(path: str | Path) -> Any | None:
    """The tokenizer in `path`, or None if the directory has none."""
    directory = checkpoint_directory(path, "tokenizer")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    with model_errors(f"The tokenizer in {directory}"):
        _check_sizes(directory)
        settings = _settings(directory)
        files = _tokenizer_files(directory, settings)
        for file in files:
            _check_contents(file, read_object(file, MAX_VOCABULARY_NBYTES))
        overruled = dict.fromkeys(filter(_names_file, settings))
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                directory, config=_family(directory), local_files_only=True, trust_remote_code=False, **overruled
            )
        if not files and tokenizer.is_fast:  # made from other files just now
            _check_contents(directory, loads(tokenizer.backend_tokenizer.to_str()))
        _use(tokenizer)
        return tokenizer


def _use(tokenizer: Any) -> None:
    """Raise what a broken one raises when it is used: a panic, or an exception whatever the text is."""
    with suppress(Exception):  # some do not know every character
        tokenizer.decode(tokenizer(SAMPLE).input_ids)
    tokenizer("")


def _check_sizes(directory: Path) -> None:
    for file in directory.iterdir():
        if file.name.endswith(READ_ENDINGS) and file.is_file() and file.stat().st_size > MAX_VOCABULARY_NBYTES:
            raise CorruptCheckpointError(
                f"{file} has more than {MAX_VOCABULARY_NBYTES} bytes; no tokenizer has so many."
            )


def _settings(directory: Path) -> dict[str, Any]:
    """The contents of tokenizer_config.json. Refuses what would have transformers read or run something else."""
    legacy, file = directory / "special_tokens_map.json", directory / "tokenizer_config.json"
    for name in filter(_names_file, read_object(legacy) if legacy.is_file() else ()):
        raise CorruptCheckpointError(f"{legacy} has {name!r:.200}; it names special tokens and no files.")
    settings = read_object(file, MAX_VOCABULARY_NBYTES) if file.is_file() else {}
    if settings.get("init_inputs"):
        raise CorruptCheckpointError(f"{file} has init_inputs, by which other files would be read; remove them.")
    _check_class(settings.get("tokenizer_class"), file)
    added = settings.get("added_tokens_decoder")
    if isinstance(added, dict):
        check_token_ids((int(name) for name in added if name.isdecimal()), str(file))
    return settings


def _names_file(name: str) -> bool:
    return name.endswith("_file") or name in FILE_ENTRIES


def _check_class(name: Any, file: Path) -> None:
    """Any class of transformers can be named, and is asked to load the directory."""
    if name is None:
        return
    found = tokenizer_class_from_name(name) if isinstance(name, str) else name
    is_tokenizer = isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
    if found is not None and not is_tokenizer and not getattr(found, "is_dummy", False):
        raise CorruptCheckpointError(f"{file} has tokenizer_class {name!r:.200}, which is no tokenizer.")


def _tokenizer_files(directory: Path, settings: dict[str, Any]) -> list[Path]:
    """The file that describes the whole tokenizer, or those of which transformers takes the one for its version."""
    versions = settings.get(VERSIONS, ())
    if not isinstance(versions, (list, tuple)):
        raise CorruptCheckpointError(f"{directory}/tokenizer_config.json has {VERSIONS} that are no list.")
    named = [file_beside(directory / "tokenizer_config.json", name, (".json",)) for name in versions]
    return [file for file in (directory / "tokenizer.json", *named) if file.is_file()]


def _check_contents(file: Path, values: dict[str, Any]) -> None:
    """Refuse the tokenizer that `values` of `file` describe if it does harm. Takes a second where that is not clear."""
    check_vocabulary(values, str(file))
    check_growth(values, str(file))
    if is_plain(values):
        return
    with closing(Confined(memory_nbytes=TRIAL_NBYTES)) as confined:
        try:
            confined.call(TRIAL, dumps(values), seconds=TRIAL_SECONDS)
        except ConfinedError as error:
            raise CorruptCheckpointError(f"{file} makes no usable tokenizer; a trial of it {_said(error)}.") from error


def _said(error: ConfinedError) -> str:
    return f"raised: {error}" if isinstance(error, FunctionError) else str(error)


def _family(directory: Path) -> PreTrainedConfig:
    """As much of the configuration as decides which class of tokenizers transformers takes."""
    file = directory / "config.json"
    values = read_object(file) if file.is_file() else {}
    _check_class(values.get("tokenizer_class"), file)
    known: dict[str, Any] = {
        name: values[name] for name in ("tokenizer_class", "model_name") if isinstance(values.get(name), str)
    }
    known["name_or_path"] = str(directory)
    family = values.get("model_type")
    build = CONFIG_MAPPING[family] if isinstance(family, str) and family in CONFIG_MAPPING else PreTrainedConfig
    try:
        with quiet():
            return build(**known)
    except Exception:  # a family that has no defaults
        return PreTrainedConfig(**known)
