"""Checkpoints of tiny encoder-decoder models with a tokenizer, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperFeatureExtractor

from oracle.families import build_tiny

START, END = 2, 1
RATE = 16000  # samples a second, of which the tiny Whisper reads one second


def save(family: str, directory: Path, **generation: Any) -> Path:
    """A checkpoint whose words are "w0" to "w127", with an end token after every text."""
    network = build_tiny(family)
    network.generation_config = GenerationConfig(decoder_start_token_id=START, eos_token_id=END, **generation)
    network.save_pretrained(directory)
    vocabulary = {f"w{i}": i for i in range(128) if i != END} | {"</s>": END}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(directory / "words")
    if family == "whisper":
        extractor().save_pretrained(directory)
    return directory


def extractor() -> WhisperFeatureExtractor:
    """What makes features for the tiny Whisper."""
    return WhisperFeatureExtractor(feature_size=8, sampling_rate=RATE, hop_length=333, chunk_length=1, n_fft=400)
