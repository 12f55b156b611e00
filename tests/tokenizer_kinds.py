"""Small tokenizers of every kind that joins tokens to text in a way of its own, and the texts that are right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SPECIAL = ("<end>", "<user>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SAMPLE = ("the stop stopping a b ab of the end", "🙂 漢字 naïve 🙂🙂", "don't, stop. isn't it? the end")


class Kind:
    """A tokenizer, and the one text of tokens that pieces of text have to add up to."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def tokens(self) -> list[int]:
        """All that a model may write. None writes a space as a byte."""
        return [
            token for token in range(len(self.tokenizer)) if self.tokenizer.convert_ids_to_tokens(token) != "<0x20>"
        ]

    @property
    def unusual_tokens(self) -> list[int]:
        """Those that show no character by themselves, and special ones."""
        return [token for token in self.tokens if self.decode([token]).strip(" \ufffd") == ""]

    def spells_replacement(self, tokens: Sequence[int]) -> bool:
        """Whether U+FFFD is written in bytes beside wrong ones, which nobody can tell from it."""
        return False

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text


class ByteFallbackKind(Kind):
    """Of a run of bytes with a wrong one the tokenizer shows none; as in sentencepiece, the others have their text."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        skipped = set(self.tokenizer.all_special_ids) if skip_special_tokens else set()
        shown = [token for token in tokens if token not in skipped]
        bytes_of = dict(zip(self.tokenizer.convert_tokens_to_ids(list(BYTES)), range(256), strict=True))
        mended = []
        for is_byte, group in groupby(shown, bytes_of.__contains__):
            run = list(group)
            mended += self._mended([bytes_of[token] for token in run]) if is_byte else run
        return super().decode(mended, skip_special_tokens)

    def spells_replacement(self, tokens: Sequence[int]) -> bool:
        return "<0xEF><0xBF><0xBD>" in "".join(self.tokenizer.convert_ids_to_tokens(list(tokens)))

    def _mended(self, run: list[int]) -> list[int]:
        """The tokens of a run of bytes with that of U+FFFD for each one that belongs to no character."""
        wrong, pieces = self.tokenizer.convert_tokens_to_ids("\ufffd"), list[str]()
        left = bytes(run)
        while left:
            size = next((size for size in range(1, 5) if _is_character(left[:size])), 0)
            pieces += [BYTES[byte] for byte in left[:size]] or ["\ufffd"]
            left = left[size or 1 :]
        assert wrong is not None
        return list(self.tokenizer.convert_tokens_to_ids(pieces))


class CleaningTokenizer:
    """A slow tokenizer that takes spaces back when it sees what follows: no text of its is final."""

    def __init__(self, words: Kind) -> None:
        self._words = words.tokenizer

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        text = " ".join(self._words.convert_ids_to_tokens(list(tokens), skip_special_tokens=skip_special_tokens))
        return text.replace(" ##", "").replace(" ' ", "'").strip()


class StrippingTokenizer(PreTrainedTokenizerFast):
    """As slow tokenizers of sentencepiece do: space at both ends of a text is not shown until more text follows."""

    def decode(self, *values: Any, **options: Any) -> str:
        return str(super().decode(*values, **options)).strip()


def byte_level() -> Kind:
    """GPT-2, Llama 3, Qwen."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(raw, trainers.BpeTrainer(vocab_size=310, initial_alphabet=alphabet, show_progress=False))
    return Kind(_wrapped(raw))


def llama() -> Kind:
    """Llama 2, Mistral: a space begins the text and is taken away again."""
    ends = [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _byte_fallback(normalizer, ends)


def gemma() -> Kind:
    return _byte_fallback(normalizers.Replace(" ", "▁"), [decoders.Fuse()])


def stripping() -> Kind:
    return Kind(StrippingTokenizer(tokenizer_object=byte_level().tokenizer.backend_tokenizer, eos_token=SPECIAL[0]))


def unigram() -> Kind:
    """T5: what is not in the vocabulary is unknown."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    _train(raw, trainer)
    return Kind(_wrapped(raw))


def word_piece() -> Kind:
    """BERT: words are joined by spaces, but for those that go on with ##."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=True)
    _train(raw, trainers.WordPieceTrainer(vocab_size=100, special_tokens=["<unk>"], show_progress=False))
    return Kind(_wrapped(raw))


def word_ends() -> Kind:
    """GPT, CLIP: words end with a mark that shows as a space if something follows."""
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.BPEDecoder("</w>")
    _train(raw, trainers.BpeTrainer(vocab_size=90, end_of_word_suffix="</w>", show_progress=False))
    return Kind(_wrapped(raw))


def ignoring_bytes() -> Kind:
    """ByT5, a slow one: tokens are bytes, and those of no character are left out."""
    return Kind(ByT5Tokenizer(extra_ids=0))


def _byte_fallback(normalizer: Any, ends: list[Any]) -> Kind:
    pieces = ["<unk>", *BYTES, "▁", *"abdehnopst", "▁a", "▁t", "th", "▁th", "▁the", "st", "op", "stop", "漢", "\ufffd"]
    merges = [("▁", "a"), ("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e"), ("s", "t"), ("o", "p"), ("st", "op")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizer
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), *ends])
    return ByteFallbackKind(_wrapped(raw))


def _train(raw: Tokenizer, trainer: Any) -> None:
    raw.train_from_iterator(SAMPLE, trainer)


def _wrapped(raw: Tokenizer) -> PreTrainedTokenizerFast:
    unknown = {"unk_token": "<unk>"} if raw.token_to_id("<unk>") is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIAL[0], additional_special_tokens=list(SPECIAL[1:]), **unknown
    )


def _is_character(text: bytes) -> bool:
    try:
        return len(text.decode()) == 1
    except UnicodeDecodeError:
        return False


KINDS = {
    build.__name__: build
    for build in (byte_level, llama, gemma, unigram, word_piece, word_ends, stripping, ignoring_bytes)
}
