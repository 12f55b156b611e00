"""The few of NVIDIA's instructions that kernels hold as text, on words of NumPy: PTX ISA, sections 9.7.8 and 9.7.9."""

import re

import numpy as np

WORD = np.uint32
REGISTER = re.compile(r"\.reg \.b32 (.*)")


def run(text, constraints, words):
    """Results of `text`, uint32 like `words`: those that `constraints` begin with, then come the words."""
    count = constraints.count("=r")
    registers = {f"${count + index}": each for index, each in enumerate(words)}
    for line in filter(None, (each.strip() for each in text.strip("{}\n").split(";"))):
        if not REGISTER.match(line):
            name, operands = line.split(" ", 1)
            target, *sources = [each.strip() for each in operands.split(",")]
            values = [registers[each] if each in registers else WORD(int(each, 0)) for each in sources]
            registers[target] = OPERATIONS[name](*values)
    return [registers[f"${index}"] for index in range(count)]


def _prmt(first, second, selector):
    """Four bytes of eight, without those that repeat a sign."""
    both = (second.astype(np.uint64) << np.uint64(32)) | first.astype(np.uint64)
    result = np.zeros_like(first)
    for place in range(4):
        chosen = int(selector) >> (4 * place) & 0xF
        assert chosen < 8
        byte = both >> np.uint64(8 * chosen) & np.uint64(0xFF)
        result |= byte.astype(WORD) << WORD(8 * place)
    return result


def _lop3(first, second, third, table):
    result = np.zeros_like(first)
    for index in range(8):
        if int(table) >> index & 1:
            each = [value if index >> place & 1 else ~value for value, place in ((first, 2), (second, 1), (third, 0))]
            result |= each[0] & each[1] & each[2]
    return result


OPERATIONS = {
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "shl.b32": lambda value, count: value << count,
    "shr.u32": lambda value, count: value >> count,
    "and.b32": lambda first, second: first & second,
}
