"""Machines to plan for: well-known ones by name, and this one, measured when it is asked about.

A figure is what the maker states, without sparsity; none says how much of it a program reaches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from pagoda.errors import ConfigError

GIB = 1 << 30
THIS = "this"


@dataclass(frozen=True)
class Machine:
    """What a plan needs of one device; None where nobody said. `flops` are operations a second by type of numbers."""

    name: str
    memory_nbytes: int | None = None
    bandwidth: float | None = None  # bytes a second
    flops: Mapping[str, float] = field(default_factory=dict)
    source: str = "as given"

    def flops_in(self, dtype: str) -> float | None:
        """Of products in `dtype`; those of fp32 where nothing else is known."""
        half = {"bfloat16", "float16"}
        names = (dtype, *(half if dtype in half else ()), "float32")
        return next((self.flops[name] for name in names if name in self.flops), None)


def _halves(teraflops: float, full: float) -> dict[str, float]:
    """The same in both types of 16 bits, and that in fp32."""
    return {"bfloat16": teraflops * 1e12, "float16": teraflops * 1e12, "float32": full * 1e12}


PRESETS = (
    Machine("H100", 80 * GIB, 3.35e12, _halves(989.4, 66.9), "NVIDIA H100 data sheet, SXM5"),
    Machine("H200", 141 * GIB, 4.8e12, _halves(989.4, 66.9), "NVIDIA H200 data sheet, SXM5"),
    Machine("A100", 80 * GIB, 2.039e12, _halves(312, 19.5), "NVIDIA A100 data sheet, 80 GB SXM4"),
    Machine("B200", 180 * GIB, 7.7e12, _halves(2250, 75), "NVIDIA HGX B200 data sheet, an eighth of it"),
    Machine("L4", 24 * GIB, 0.3e12, _halves(121, 30.3), "NVIDIA L4 data sheet"),
    Machine("RTX 4090", 24 * GIB, 1.008e12, _halves(165.2, 82.6), "NVIDIA Ada GPU architecture white paper"),
    Machine(
        "M3 Max",
        128 * GIB,
        0.4e12,
        _halves(14.2, 14.2),
        "Apple's specification, 40-core GPU; arithmetic is 40 x 128 x 2 x 1.38 GHz, since Apple states none",
    ),
)


def find_machine(name: str) -> Machine:
    """A preset, however its name is spelled, or this machine, measured. ConfigError names the others."""
    if _plain(name) in (THIS, "thismachine"):
        from pagoda.analysis.measured import this_machine

        return this_machine()
    known = {_plain(each.name): each for each in PRESETS}
    if _plain(name) in known:
        return known[_plain(name)]
    near = get_close_matches(_plain(name), known, n=1)
    hint = f"did you mean {known[near[0]].name}? " if near else ""
    raise ConfigError(
        f"There is no machine {name!r:.100}; {hint}Choose one of {', '.join(each.name for each in PRESETS)} and "
        f"{THIS}, or give memory, bandwidth and flops."
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
