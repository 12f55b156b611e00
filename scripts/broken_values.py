"""Values that do not belong in the JSON of a checkpoint, and places for them; chosen by a given generator."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

LARGE = (10**4, 10**5, 10**6, 10**7, 10**9, 10**12, 2**31, 2**31 - 1, 2**63, 2**64, -(2**63))
SMALL = (-1, 0, 1, 2, 3, 7, 64, 1000)
NUMBERS = (None, True, False, 0.5, -0.5, 1e7, 1e308, float("nan"), float("inf"), -float("inf"))
TEXTS = ("", "x", "10", "10000000", "../x", "/dev/zero", "a" * 10_000, "\0", "\ud800", "load", "auto", "float8_e4m3fn")
LISTS = ([], {}, [None], [[]], [[1, 2], [3]], ["x"], {"x": 1}, {"0": None}, [1.5], [-1], [10**9], [True])
REPEATED = (1, "x", "full_attention")
DEPTH = 500


def any_value(random: Random) -> Any:
    chance = random.random()
    if chance < 0.03:
        return [random.choice(REPEATED)] * random.choice((10**4, 10**5, 10**6))
    if chance < 0.05:
        return _deep(random)
    return random.choice(random.choice((LARGE, SMALL, NUMBERS, TEXTS, LISTS)))


def _deep(random: Random) -> Any:
    value: Any = 1
    for _ in range(DEPTH):
        value = {"a": value} if random.random() < 0.5 else [value]
    return value


def change(file: Path, random: Random, names: tuple[str, ...]) -> str:
    """Another value somewhere in `file`, or under one of `names`, which may not be there; or none any longer."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    place, path = _place(values, random, names)
    key = path[-1]
    if random.random() < 0.15 and key in _keys(place):
        del place[key]
        done = "removed"
    else:
        value = any_value(random)
        _set(place, key, value)
        done = f"= {shown(value)}"
    file.write_text(json.dumps(values))
    return f"{file.name}: {'.'.join(str(key)[:50] for key in path)} {done}"


def _place(values: Any, random: Random, names: tuple[str, ...]) -> tuple[Any, list[Any]]:
    """A dictionary or list inside of `values`, and the keys that lead to it, with one of its own last."""
    if names and random.random() < 0.4:
        return values, [random.choice(names)]
    place, path = values, []
    while True:
        path.append(random.choice(_keys(place) or ["x"]))
        inner = place[path[-1]] if path[-1] in _keys(place) else None
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.3:
            return place, path
        place = inner


def _keys(place: Any) -> list[Any]:
    return [*place] if isinstance(place, dict) else [*range(len(place))]


def _set(place: Any, key: Any, value: Any) -> None:
    if isinstance(place, list) and key not in _keys(place):
        place.append(value)
    else:
        place[key] = value


def shown(value: Any) -> str:
    return f"{value!r:.80}"
