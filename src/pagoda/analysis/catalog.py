"""The configurations that come with the package, by name: shapes of well-known models, each with where it is published.

Names are found however they are spelled: "Llama 3 70B", "meta-llama/Llama-3-70B" and "llama-3-70b" are one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pagoda.checkpoint.files import read_object
from pagoda.errors import ModelNotFoundError

FOLDER = Path(__file__).parent / "configs"
MAX_NEAR = 6


@dataclass(frozen=True)
class Published:
    """Weights that are published in fewer bits: by which method, what it does, and the bytes that come of it.

    Bytes are counted from parameters by the scheme; those of routed experts, scales included, are `expert_nbytes`.
    """

    method: str
    scheme: str
    nbytes: int
    expert_nbytes: int


@dataclass(frozen=True)
class Shape:
    """A shipped configuration. `parameters` is the published number of weights, but for those of what is `left_out`.

    `published`: None where they are in the precision that the configuration states.
    """

    name: str
    source: str
    parameters: int
    left_out: str = ""
    published: Published | None = None

    def config(self) -> dict[str, Any]:
        """What its config.json says of sizes."""
        return read_object(FOLDER / f"{self.name}.json")


def shapes() -> tuple[Shape, ...]:
    """All of them, in the order of the index."""
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return tuple(_shape(name, **entry) for name, entry in index.items())


def _shape(name: str, published: dict[str, Any] | None = None, **entry: Any) -> Shape:
    return Shape(name, **entry, published=None if published is None else Published(**published))


def find_shape(name: str) -> Shape:
    """The one of this name. ModelNotFoundError lists those with names like it."""
    known = {_plain(each.name): each for each in shapes()}
    wanted = _plain(name.rpartition("/")[2])
    for spelling in (wanted, wanted.removeprefix("meta")):
        if spelling in known:
            return known[spelling]
    parts = [each for spelling, each in known.items() if wanted and (wanted in spelling or spelling in wanted)]
    near = [*parts, *(known[each] for each in get_close_matches(wanted, known, n=MAX_NEAR, cutoff=0.5))]
    names = list(dict.fromkeys(each.name for each in near))[:MAX_NEAR]
    hint = f"near it are {', '.join(names)}" if names else "`pagoda plan --list` names them"
    raise ModelNotFoundError(f"There is no folder, no config.json and no shipped configuration {name!r:.200}; {hint}.")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
