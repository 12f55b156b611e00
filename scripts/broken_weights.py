"""Ways to break the weights of a checkpoint: the index, headers of safetensors, numbers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from broken_values import change, shown

SHARDS = ("x.bin", "../x.safetensors", "/dev/zero.safetensors", "config.json", "", None, 5, [], ".safetensors")
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "U8", "F8_E4M3", "F4", "C64", "x", None)
SHAPES = ([], [0], [1] * 70, [2**62, 4], [-1], [0, 2**62], None)
OFFSETS = ([0, 0], [0, 2**62], [-1, 1], [4, 0], [0], None)
NAMES = ("x", "", "lm_head.1000000", "a" * 5000, "model.layers.7.mlp.up_proj.weight", "\ud800", None)
LENGTHS = (0, 1, 2**62, 10**8)
VALUES = (float("nan"), float("inf"), 3e38, -3e38, 1e-40)


def index(directory: Path, random: Random) -> str:
    """One tensor in another file, or any other entry."""
    file = directory / "model.safetensors.index.json"
    if not file.is_file():
        file.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}))
    if random.random() < 0.2:
        (directory / "model.safetensors").unlink(missing_ok=True)
    if random.random() < 0.3:
        return change(file, random, ())
    values = json.loads(file.read_text())
    names = values["weight_map"]
    name = random.choice([*names])
    names[name] = random.choice((*SHARDS, *names.values()))
    file.write_text(json.dumps(values))
    return f"index: {name} -> {shown(names[name])}"


def header(directory: Path, random: Random) -> str:
    """An entry of a header, its name, or the length of it all."""
    file, content = _any_weights(directory, random)
    length = int.from_bytes(content[:8], "little")
    entries, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    done = random.choice((_entry, _name))(entries, random)
    text = json.dumps(entries).encode()
    length = random.choice((*LENGTHS, len(text) + 1)) if random.random() < 0.1 else len(text)
    file.write_bytes(struct.pack("<Q", length) + text + data)
    return f"{file.name}: {done}, {length} of {len(text)} bytes"


def _entry(entries: dict[str, Any], random: Random) -> str:
    name = random.choice([key for key in entries if key != "__metadata__"])
    shape = entries[name]["shape"]
    field, choices = random.choice(
        (("dtype", TYPES), ("shape", (*SHAPES, [shape], shape[::-1])), ("data_offsets", OFFSETS))
    )
    entries[name][field] = random.choice(choices)
    return f"{name} {field} = {shown(entries[name][field])}"


def _name(entries: dict[str, Any], random: Random) -> str:
    name, other = random.choice([key for key in entries if key != "__metadata__"]), random.choice(NAMES)
    entry = entries.pop(name)
    if other is not None:
        entries[other] = entry
    return f"{name} is now {shown(other)}"


def numbers(directory: Path, random: Random) -> str:
    """Numbers that are none, or very large."""
    file, content = _any_weights(directory, random)
    start, value = 8 + int.from_bytes(content[:8], "little"), random.choice(VALUES)
    for _ in range(random.choice((1, 100))):
        place = start + random.randrange(max((len(content) - start) // 4, 1)) * 4
        content[place : place + 4] = struct.pack("<f", value)
    file.write_bytes(content)
    return f"{file.name}: {value} in it"


def _any_weights(directory: Path, random: Random) -> tuple[Path, bytearray]:
    file = random.choice(sorted(directory.glob("*.safetensors")))
    return file, bytearray(file.read_bytes())
