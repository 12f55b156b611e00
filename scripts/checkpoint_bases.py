"""Tiny checkpoints of several families, whole and right, for `fuzz_checkpoints.py` to break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, WhisperFeatureExtractor

from pagoda.models.quiet import quiet
from pagoda.models.selftest import tiny_network

VOCABULARY = 300
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}<assistant>"
GENERATION = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "do_sample": True,
    "eos_token_id": [2, 3],
    "bos_token_id": 1,
    "suppress_tokens": [5],
    "bad_words_ids": [[6], [7, 8]],
}
# Windows, experts, learned positions, recurrent states, a hybrid, latents, ALiBi, encoders of text and of sound.
FAMILIES = ("gemma2", "qwen3_moe", "gpt2", "mamba2", "jamba", "deepseek_v3", "bloom", "bart", "t5", "whisper")


def write_bases(directory: Path) -> list[Path]:
    """The directories of all of them."""
    bases = [_llama(directory / "llama"), _sharded(directory / "sharded")]
    for family in FAMILIES:
        base = directory / family
        with quiet():
            tiny_network(AutoConfig.for_model(family)).save_pretrained(base)
        _words(base, 128)
        if family == "whisper":
            _extractor().save_pretrained(base)
        bases.append(base)
    return bases


def _llama(directory: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=2,
        bos_token_id=1,
    )
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(directory, **options)
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    _bytes(directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def _sharded(directory: Path) -> Path:
    """With the tokenizer of a sentencepiece model."""
    _llama(directory, max_shard_size="40KB")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab"]
    raw = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    _save(raw, directory, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return directory


def _bytes(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(
        models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2} | {each: i + 3 for i, each in enumerate(alphabet)}, [])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    _save(raw, directory, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _words(directory: Path, size: int) -> None:
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w3"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    _save(raw, directory, unk_token="w3")


def _save(raw: Tokenizer, directory: Path, **special: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(directory)


def _extractor() -> WhisperFeatureExtractor:
    """What makes features of a second of sound."""
    return WhisperFeatureExtractor(feature_size=8, sampling_rate=16000, hop_length=333, chunk_length=1, n_fft=400)
