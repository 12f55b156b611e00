"""Bits of codes as bits of fp16, in NVIDIA's instructions: what the compiler does not find by itself.

Two words at a time, so that a register has two numbers of a tile: moved and masked one by one they take twice as many
instructions. `$0` and so on are results, one for each tile, then come the words. decode.py has the same without them.
"""

from __future__ import annotations

from collections.abc import Iterable

import triton.language as tl

# Byte by byte of two words: which bytes of them go to both halves of a register.
SELECTORS = ("0x4400", "0x5511", "0x6622", "0x7733")
# What `lop3` makes of three words: (a & b) ^ c, and (a & b) | c.
AND_XOR, AND_OR = "0x6a", "0xea"


def _instructions(registers: str, lines: Iterable[str]) -> tl.constexpr:
    return tl.constexpr("{\n.reg .b32 " + registers + ";\n" + "\n".join(f"{line};" for line in lines) + "\n}")


def _constraints(results: int) -> tl.constexpr:
    return tl.constexpr(",".join(["=r"] * results + ["r", "r"]))


def _bytes() -> Iterable[str]:
    for index, selector in enumerate(SELECTORS):
        yield f"prmt.b32 t, $4, $5, {selector}"
        yield f"lop3.b32 ${index}, t, 0x00ff00ff, 0x64806480, {AND_XOR}"


def _halves_of_bytes() -> Iterable[str]:
    for index, selector in enumerate(SELECTORS):
        yield f"prmt.b32 t, $8, $9, {selector}"
        yield "shr.u32 u, t, 4"
        yield f"lop3.b32 ${2 * index}, u, 0x00f000f0, 0x54005400, {AND_OR}"
        yield f"lop3.b32 ${2 * index + 1}, t, 0x00f000f0, 0x54005400, {AND_OR}"


def _levels() -> Iterable[str]:
    for index, selector in enumerate(SELECTORS):
        yield f"prmt.b32 t, $8, $9, {selector}"
        yield f"lop3.b32 ${2 * index}, t, 0x000f000f, 0x64006400, {AND_OR}"
        yield f"lop3.b32 ${2 * index + 1}, t, 0x00f000f0, 0x54005400, {AND_OR}"


def _e4m3() -> Iterable[str]:
    for index, selector in enumerate(SELECTORS):
        yield f"prmt.b32 t, $4, $5, {selector}"
        yield "shr.u32 u, t, 1"
        yield "and.b32 t, t, 0x80008000"
        yield f"lop3.b32 ${index}, u, 0x3f803f80, t, {AND_OR}"


def _e5m2() -> Iterable[str]:
    for index, selector in enumerate(SELECTORS):
        yield f"prmt.b32 t, $4, $5, {selector}"
        yield f"and.b32 ${index}, t, 0xff00ff00"


INT8 = _instructions("t", _bytes())
INT4 = _instructions("t, u", _halves_of_bytes())
LEVELS = _instructions("t", _levels())
E4M3 = _instructions("t, u", _e4m3())
E5M2 = _instructions("t", _e5m2())
FOUR, EIGHT = _constraints(4), _constraints(8)
