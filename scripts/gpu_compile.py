"""Compiles the Triton kernels for cards that are not here: what the interpreter forgives and a compiler does not.

    python scripts/gpu_compile.py [--cards H100,MI300,...] [--cases attend/int8,...] [--output kernels.json]

Takes the cases of gpu_check.py, those of heads of 256 channels, products with coded weights, also of experts, and what
the models of gpu_widths.py launch. Fails if a kernel does not compile, or takes more shared memory than a program has
on that card, or than tiles.py reckons with. Says how many registers threads take, how much they spill, and how many
instructions the innermost loop has. Needs no GPU, and the compilers that Triton brings.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("src", "tests")]

import gpu_cases  # noqa: E402
import gpu_widths  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.driver import DriverBase  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from kernels.cases import Case, build  # noqa: E402
from pagoda.kernels.coded_stack import CodedStack  # noqa: E402
from pagoda.kernels.coded_weight import CodedWeight, GroupForm  # noqa: E402
from pagoda.kernels.native_calls import compiled as compiled_module  # noqa: E402
from pagoda.kernels.triton import tiles  # noqa: E402
from pagoda.kernels.triton.attention import TritonAttention  # noqa: E402
from pagoda.kernels.triton.coded import FEW_ROWS, LEAST_ROWS, CodedLayers  # noqa: E402
from pagoda.registry import lookup  # noqa: E402


class Card(NamedTuple):
    """What kernels are compiled for, and what shared memory a program has there."""

    target: GPUTarget
    shared_nbytes: int


CARDS = {
    "A100": Card(GPUTarget("cuda", 80, 32), 163 << 10),
    "RTX3090": Card(GPUTarget("cuda", 86, 32), 99 << 10),
    "RTX4090": Card(GPUTarget("cuda", 89, 32), 99 << 10),
    "H100": Card(GPUTarget("cuda", 90, 32), 227 << 10),
    "B200": Card(GPUTarget("cuda", 100, 32), 227 << 10),
    "RTX5090": Card(GPUTarget("cuda", 120, 32), 99 << 10),
    "MI300": Card(GPUTarget("hip", "gfx942", 64), 64 << 10),
    "RX7900": Card(GPUTarget("hip", "gfx1100", 32), 64 << 10),
}
WIDE, CODED, EXPERTS = "wide", "coded", "experts"
# Codings of GGUF files, and of groups.
GGUF_CODINGS = ("Q8_0", "Q4_0", "Q4_1", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
FORMS = {
    "int8": GroupForm(8, 32, 128),
    "int4": GroupForm(4, 32, has_minima=True),
    "awq": GroupForm(4, 128, has_minima=True, has_zeros=True),
    "full": GroupForm(8, 128, 128, in_half=False),
}
CODED_SHAPE = (4096, 4096)
NUM_EXPERTS, EXPERT_SHAPE = 128, (1536, 2048)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class AbsentDriver(DriverBase):
    """Stands for a card that kernels are compiled for and never run on."""

    def __init__(self, target: GPUTarget, number: int) -> None:
        self._target = target
        self._number = number

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, _device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_device_interface(self) -> Any:
        raise NotImplementedError

    def get_empty_cache_for_benchmark(self) -> Any:
        raise NotImplementedError

    def clear_cache(self, _cache: Any) -> None:
        raise NotImplementedError


class Launches:
    """The kernels that would be launched, compiled."""

    def __init__(self) -> None:
        self.compiled: list[tuple[str, Any, Any]] = []
        original = JITFunction.run

        def run(function: Any, *arguments: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:  # noqa: ARG001
            kernel = original(function, *arguments, grid=grid, warmup=True, **options)
            self.compiled.append((function.fn.__name__, kernel, arguments[-1]))
            return kernel

        JITFunction.run = run

    def take(self) -> list[tuple[str, Any, Any]]:
        compiled, self.compiled = self.compiled, []
        return compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", default=",".join(CARDS), help="which of: " + ", ".join(CARDS))
    parser.add_argument("--cases", default="", help="those that begin with one of these; all if none is given")
    parser.add_argument("--output", type=Path, help="a JSON file with all kernels")
    arguments = parser.parse_args()
    launches, lines, seen = Launches(), [], set()
    for name in arguments.cards.split(","):
        for case in case_names(tuple(arguments.cases.split(","))):
            for line in compiled(name, case, launches):
                if line["hash"] not in seen:
                    seen.add(line["hash"])
                    lines.append(line)
                    print("  ".join(f"{key}={value}" for key, value in line.items() if key != "hash"), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(lines, indent=1))
    failed = [line for line in lines if "error" in line]
    print(f"{len(lines)} kernels, {len(failed)} failed")
    sys.exit(bool(failed))


def case_names(beginnings: tuple[str, ...]) -> list[str]:
    names = [each.removeprefix("case:") for each in gpu_cases.names()]
    names += [f"{WIDE}/{format}/full" for format in ("bf16", "int8", "int4", "fp32")]
    for what in (CODED, EXPERTS):
        names += [f"{what}/{coding}/bf16" for coding in (*GGUF_CODINGS, *FORMS)]
        names += [f"{what}/{coding}/{dtype}" for coding in ("Q6_K", "int8") for dtype in ("fp16", "fp32")]
    return [name for name in (*names, *gpu_widths.names()) if name.startswith(beginnings)]


def compiled(card_name: str, case_name: str, launches: Launches) -> Iterator[dict[str, Any]]:
    """A line for each kernel that a case launches on a card."""
    card = CARDS[card_name]
    driver.set_active(AbsentDriver(card.target, list(CARDS).index(card_name)))
    what, kind, detail = case_name.split("/")
    line = {"card": card_name, "case": case_name}
    try:
        if what == CODED:
            weight = CodedWeight.unfilled(kind, coding_of(kind), *CODED_SHAPE)
            multiply(weight, DTYPES[detail])
        elif what == EXPERTS:
            stack = CodedStack.unfilled(kind, coding_of(kind), *EXPERT_SHAPE, count=(NUM_EXPERTS,))
            multiply_routed(stack, DTYPES[detail])
        elif kind in gpu_widths.MODELS:
            gpu_widths.launch(what, kind, detail, tiles.for_card(card.shared_nbytes), card.target.backend == "cuda")
        else:
            launch(case_of(what, lookup("format", kind)), what, gpu_cases.rule_of(what, detail), card)
    except Exception as error:
        yield {**line, "hash": (card_name, case_name), "error": str(error)[-300:]}
    for name, kernel, shape in launches.take():
        shared = kernel.metadata.shared
        found = {**line, "kernel": name, "hash": (card_name, kernel.hash), "shared_nbytes": shared, **resources(kernel)}
        allowed = shape.load.shared_nbytes(shape.tile) if name.startswith("attend") else card.shared_nbytes
        if shared > min(allowed, card.shared_nbytes):
            found["error"] = f"more shared memory than {allowed} reckoned with, {card.shared_nbytes} there are"
        yield found


def case_of(what: str, format: Any) -> Case:
    if what != WIDE:
        return gpu_cases.case_of(what, format)
    return build(replace(gpu_cases.shape_of("attend", format), key_width=256, value_width=256))


def launch(case: Case, what: str, rule: Any, card: Card) -> None:
    kernels = TritonAttention(tiles.for_card(card.shared_nbytes), has_ptx=card.target.backend == "cuda")
    sinks = torch.linspace(-1, 3, case.shape.heads) if what == "sinks" else None
    biases = torch.randn(case.shape.heads, 300) if what == "biases" else None
    kernels.attend(case.query, case.layer, case.view, rule, sinks, biases)
    kernels.store(case.key, case.value, case.blank(), case.whole)


def coding_of(name: str) -> Any:
    return FORMS[name].coding if name in FORMS else getattr(compiled_module().GgufType, name).coding()


def multiply(weight: CodedWeight, dtype: torch.dtype) -> None:
    for num_rows in (1, FEW_ROWS, FEW_ROWS + 1):
        CodedLayers().coded_linear(torch.zeros(num_rows, weight.depth, dtype=dtype), weight, None)
    CodedLayers().coded_rows(weight, torch.zeros(3, dtype=torch.int64), dtype)


def multiply_routed(stack: CodedStack, dtype: torch.dtype) -> None:
    """Rows of a decode step, of a large one, and of a prompt; the last also as `deterministic` has it."""
    layers, bias = (CodedLayers(), CodedLayers(), CodedLayers(), CodedLayers(True)), torch.zeros(stack.shape[:2])
    for each, num_rows in zip(layers, (1, FEW_ROWS, 4 * LEAST_ROWS * NUM_EXPERTS, 1), strict=True):
        input, experts = torch.zeros(num_rows, stack.depth, dtype=dtype), torch.zeros(num_rows, 8, dtype=torch.int64)
        each.coded_experts(input, stack, experts, bias.to(dtype))


def resources(kernel: Any) -> dict[str, Any]:
    """Of kernels for NVIDIA's cards, as their tools tell."""
    code = kernel.asm.get("cubin")
    if code is None:
        return {}
    tools = Path(triton.knobs.nvidia.cuobjdump.path)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = said_by([str(tools), "-res-usage", file.name])
        listing = said_by([str(triton.knobs.nvidia.nvdisasm.path), "-c", file.name])
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1])
    return {"registers": registers, "spilled_nbytes": stack, "loop_instructions": shortest_loop(listing)}


def said_by(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shortest_loop(listing: str) -> int | None:
    """Instructions of the shortest loop that multiplies matrices; None if there is none."""
    labels, instructions = {}, []
    for line in listing.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line.strip()):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    lengths = []
    for end, text in enumerate(instructions):
        target = re.search(r"BRA.*`\(\.(L_x_\d+)\)", text)
        start = labels.get(target[1], end + 1) if target else end + 1
        if start <= end and any("MMA" in each for each in instructions[start:end]):
            lengths.append(end + 1 - start)
    return min(lengths, default=None)


if __name__ == "__main__":
    main()
