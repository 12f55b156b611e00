"""The training text of the embedded model: its split, its tokenizer and its token streams.

Documents are cut into passages of about 16,000 characters at paragraph breaks. Passages are
numbered over all files in name order and every fiftieth is held out, so anyone with the same
files gets the same split: `held_out_passages(directory)` is all a quality test needs.
Token streams are kept in a cache folder as flat uint16 files and read as memory maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = [END_OF_TEXT, SYSTEM, USER, ASSISTANT]
VOCABULARY_SIZE = 4096
PASSAGE_CHARACTERS = 16_000
HELD_OUT_EVERY = 50

# One digit is always one token, so that a number of n digits costs n tokens wherever it stands.
WORD_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = Path(__file__).parent.parent / "src" / "pagoda" / "assets" / "tiny" / "chat_template.jinja"

TokenArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Passage:
    """A stretch of one document; `opens_document` is false for a continuation."""

    file_name: str
    text: str
    opens_document: bool


def cut_document(document: str, limit: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Cut at paragraph breaks (at any character where a paragraph exceeds the limit)."""
    start = 0
    while len(document) - start > limit:
        end = document.rfind("\n\n", start + limit // 2, start + limit)
        end = start + limit if end < 0 else end + 2
        yield document[start:end]
        start = end
    yield document[start:]


def all_passages(directory: Path) -> Iterator[Passage]:
    """Every passage of every text file, in an order that depends on the files alone."""
    for path in sorted(directory.glob("*.txt")):
        for document in path.read_text(encoding="utf-8").split("\f"):
            for position, text in enumerate(cut_document(document.strip())):
                if text:
                    yield Passage(path.name, text, opens_document=position == 0)


def is_held_out(number: int) -> bool:
    """Whether the passage with this number belongs to the held-out slice."""
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2


def held_out_passages(directory: Path) -> list[Passage]:
    """The slice no model was trained on."""
    return [passage for number, passage in enumerate(all_passages(directory)) if is_held_out(number)]


def training_passages(directory: Path) -> Iterator[Passage]:
    """The rest; a passage whose predecessor is held out opens a document of its own."""
    gap = False
    for number, passage in enumerate(all_passages(directory)):
        if not is_held_out(number):
            yield Passage(passage.file_name, passage.text, passage.opens_document or gap)
        gap = is_held_out(number)


def train_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary from the training passages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((passage.text for passage in training_passages(directory)), trainer)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=SPECIAL_TOKENS[1:],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    return wrapped


def load_tokenizer(cache: Path, directory: Path) -> PreTrainedTokenizerFast:
    """The cached tokenizer, trained first where there is none."""
    folder = cache / "tokenizer"
    if not folder.exists():
        train_tokenizer(directory).save_pretrained(folder)
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def encode_stream(passages: Iterator[Passage], tokenizer: PreTrainedTokenizerFast) -> TokenArray:
    """Concatenate passages, with the separator before each that opens a document."""
    separator = np.array([tokenizer.bos_token_id], dtype=np.uint16)
    pieces: list[TokenArray] = []
    backend = tokenizer.backend_tokenizer
    for passage in passages:
        if passage.opens_document:
            pieces.append(separator)
        pieces.append(np.array(backend.encode(passage.text, add_special_tokens=False).ids, dtype=np.uint16))
    return np.concatenate(pieces)


@dataclass(frozen=True)
class Corpus:
    """Token streams of both slices, and the held-out slice's size for bits per byte."""

    training: TokenArray
    held_out: TokenArray
    held_out_bytes: int


def load_corpus(cache: Path, directory: Path, tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """Memory-map both token streams, encoding them first where the cache is empty."""
    paths = {name: cache / f"{name}.uint16" for name in ("training", "held_out")}
    held_out = held_out_passages(directory)
    if not paths["training"].exists():
        encode_stream(iter(held_out), tokenizer).tofile(paths["held_out"])
        encode_stream(training_passages(directory), tokenizer).tofile(paths["training"])
    streams = {name: np.memmap(path, dtype=np.uint16, mode="r") for name, path in paths.items()}
    size = sum(len(passage.text.encode()) for passage in held_out)
    return Corpus(streams["training"], streams["held_out"], size)
