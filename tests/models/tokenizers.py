"""Contents of tokenizer.json, whole and in parts."""

from __future__ import annotations

from typing import Any

BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "vocab": {"a": 0, "b": 1, "aa": 2},
    "merges": [["a", "a"]],
}


def tokenizer_json(**parts: Any) -> dict[str, Any]:
    none = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": [], **none, "model": BPE} | parts


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(name: str, *parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(*single: Any, **special: list[int]) -> dict[str, Any]:
    tokens = {name: {"id": name, "ids": ids, "tokens": ["a"] * len(ids)} for name, ids in special.items()}
    return {"type": "TemplateProcessing", "single": list(single), "pair": [], "special_tokens": tokens}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def token(content: str, id: int = 3, **settings: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": True} | settings
