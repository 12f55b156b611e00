"""Writes docs/models.md: every family of transformers that generates text, what its cache holds, and whether it runs.

Status and reasons are those of the tables that the oracle tests check family by family (tests/oracle/families.py);
groups and bytes are what discovery finds in the default configuration of the family.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pagoda.errors import PagodaError
from pagoda.formats.page import page_geometries
from pagoda.formats.state import StateGeometry
from pagoda.layouts.spec import CacheSpec, LayerGroup, Reach
from pagoda.models.discovery import discover
from pagoda.models.loader import examine
from pagoda.registry import lookup
from pagoda.units import format_nbytes

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "models.md"
PAGE_TOKENS = 32
FORMATS = ("bf16", "int8", "k8v4", "int4")

sys.path.insert(0, str(ROOT / "tests"))

from oracle import families  # noqa: E402

EXACT = (*families.FAMILIES, *families.ENCODER_DECODERS)

INTRODUCTION = """# Models

Written by `make docs`. Every family of the installed transformers that generates text, by its `model_type`: decoders,
and encoder-decoder models. *Exact*: tokens and log-probabilities of `generate()` in tests, on a small random copy in
fp32, cold, warm, chunked, batched and preempted. *Forward*: logits of the plain forward pass in tests. *Refused*: at
load, with the reason.

Layers and bytes are those of the family's default configuration, which is often, but not always, its first published
checkpoint. Bytes are per token of a layer that keeps it, scales included, summed over the layers; layers with a window
stop growing at the window. After a plus: bytes per token that an encoder makes of its input, kept once for all
sequences of that input. Recurrent layers keep the same for every sequence, however long, in bf16 and fp32.
"""


def reference() -> str:
    """The whole document."""
    tables = (EXACT, families.FORWARD_ONLY, families.REFUSED)
    counts = dict(zip(("exact", "forward", "refused"), map(len, tables), strict=True))
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([INTRODUCTION, f"{sum(counts.values())} families: {summary}.\n", *_runs(), "", *_refused(), ""])


def _runs() -> Iterator[str]:
    yield f"| family | status | layers | {' | '.join(FORMATS)} | state of a sequence |"
    yield f"|---|---|---|{'---|' * (len(FORMATS) + 1)}"
    for family in sorted({*EXACT, *families.FORWARD_ONLY}):
        yield row(family)


def row(family: str) -> str:
    """The line of a family that runs."""
    spec = discover(families.default_config(family)).spec
    status = "exact" if family in EXACT else f"forward: {families.FORWARD_ONLY[family]}"
    layers = [*map(_described, spec.groups), *([f"{len(spec.states)} recurrent"] if spec.states else [])]
    sizes = [*(_nbytes(spec, name) for name in FORMATS), _state_nbytes(spec)]
    return f"| {family} | {status} | {', '.join(layers)} | {' | '.join(sizes)} |"


def _refused() -> Iterator[str]:
    yield "| refused | reason |"
    yield "|---|---|"
    for family in sorted(families.REFUSED):
        try:
            examine(families.default_config(family))
        except PagodaError as error:
            yield f"| {family} | {str(error).splitlines()[0]} |"


def _described(group: LayerGroup) -> str:
    reach = str(group.reach) if group.span is None else f"{group.reach} {group.span:,}"
    heads = sorted({layout.planes[0].num_heads for layout in group.layouts})
    widths = sorted({layout.planes[0].width for layout in group.layouts})
    return f"{len(group.layouts)} {reach} ({'/'.join(map(str, heads))} x {'/'.join(map(str, widths))})"


def _state_nbytes(spec: CacheSpec) -> str:
    return format_nbytes(StateGeometry(spec.states, weight_nbytes=2).page_nbytes) if spec.states else "-"


def _nbytes(spec: CacheSpec, name: str) -> str:
    if not spec.groups:
        return "-"
    try:
        geometries = page_geometries(spec, lookup("format", name), PAGE_TOKENS)
    except PagodaError:
        return "-"
    sizes: dict[bool, float] = {}
    for geometry in geometries:
        is_cross = geometry.group.reach is Reach.ENCODER
        sizes[is_cross] = sizes.get(is_cross, 0) + geometry.nbytes_per_token
    return " + ".join(format_nbytes(round(nbytes)) for _, nbytes in sorted(sizes.items()))


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
