"""`pagoda quantize`: a checkpoint with codes of 8 or 4 bits, for Pagoda, transformers and vLLM to read."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from pagoda.config import QUANTIZATIONS
from pagoda.units import format_nbytes


def add_quantize_options(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="the directory of a checkpoint")
    parser.add_argument("target", type=Path, metavar="DST", help="the folder to write: a new one, or an empty one")
    parser.add_argument(
        "--quantization",
        choices=[each for each in QUANTIZATIONS if each != "none"],
        default="int4",
        help="bits of the weights of linear layers and experts (default: int4)",
    )


def run(arguments: Namespace) -> int:
    from pagoda.models.quantized_checkpoint import write_quantized

    with tqdm(desc="Quantized", unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:

        def show(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        made = write_quantized(arguments.source, arguments.target, arguments.quantization, show)
    after, before = format_nbytes(made.written_nbytes), format_nbytes(made.stored_nbytes)
    sys.stdout.write(f"{arguments.target}: {after} of weights, {before} before; {made.num_coded:,} layers have codes\n")
    return 0
