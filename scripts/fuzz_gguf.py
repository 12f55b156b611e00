"""Breaks the headers of GGUF files at random: every one is read, or is a named error, in little time and memory.

    python scripts/fuzz_gguf.py --mutations 5000

Of those that can still be read, one in so many is loaded as a model, too, in this process. A mutation follows from
--seed and its number; --only NUMBER runs one again and shows what it raises. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import resource
import struct
import sys
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
from gguf import GGUFWriter

from gguf_models import Unconfined, write_gguf
from pagoda.checkpoint import gguf_description
from pagoda.checkpoint.gguf_files import read_gguf
from pagoda.errors import PagodaError
from pagoda.models.loader import load_model

ODD = (0, 1, 2, 3, 7, 8, 9, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1)
NO_MEMORY = "not enough memory"


def main() -> int:
    options = _options()
    gguf_description._confined = Unconfined
    counts: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    with TemporaryDirectory() as work:
        file = Path(work) / "model.gguf"
        right = _right(file)
        load_model(file)  # what all need is imported before memory is limited
        _limit(options.memory_mib << 20)
        for number in range(options.mutations) if options.only is None else [options.only]:
            random = Random(f"{options.seed}:{number}")
            file.write_bytes(_mutated(right, random))
            is_loaded = options.only is not None or random.random() < 1 / options.load_one_in
            start = monotonic()
            kind, message = _outcome(file, is_loaded, options.only is not None)
            seconds = monotonic() - start
            slowest = max(slowest, seconds)
            counts[kind] += 1
            if kind == "raised" or NO_MEMORY in message or seconds > options.seconds:
                failures.append(ascii(f"{number}: {kind}, {seconds:.1f} s, {message}"))
    print(f"{counts.total()} mutations: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}")
    print(f"slowest {slowest:.1f} s")
    print(*(f"WRONG {failure}" for failure in failures), sep="\n")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the one to run, with a traceback")
    parser.add_argument("--load-one-in", type=int, default=20, help="of those that can be read")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each")
    parser.add_argument("--memory-mib", type=int, default=1024, help="beyond what one right model takes")
    return parser.parse_args()


def _right(file: Path) -> bytes:
    def more(writer: GGUFWriter) -> None:
        writer.add_string("general.name", "a model")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([*(chr(33 + number) for number in range(63)), "!#"])
        writer.add_token_types([1] * 64)
        writer.add_token_merges(["! #"])
        writer.add_array("general.tags", ["one", "two"])
        writer.add_array("general.numbers", list(range(5000)))
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))

    write_gguf(file, "llama", more=more)
    return file.read_bytes()


def _mutated(right: bytes, random: Random) -> bytes:
    header_nbytes = right.index(b"output_norm.weight") + 64
    data = bytearray(right)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        # Half of them where the first keys and counts are.
        place = random.randrange(random.choice((256, header_nbytes)))
        match random.randrange(6):
            case 0:
                data[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                data[place : place + 8] = struct.pack("<Q", random.choice(ODD))
            case 2:
                data[place : place + 4] = struct.pack("<I", random.choice(ODD) & 0xFFFFFFFF)
            case 3:
                del data[random.randrange(len(data)) :]
            case 4:
                length = random.randrange(1, 200)
                data[place:place] = data[place : place + length]
            case 5:
                del data[place : place + random.randrange(1, 32)]
    return bytes(data)


def _outcome(file: Path, is_loaded: bool, shows: bool) -> tuple[str, str]:
    try:
        read_gguf([file])
        if not is_loaded:
            return "read", ""
        load_model(file)
    except PagodaError as error:
        return "refused", f"{type(error).__name__}: {error}"[:500]
    except BaseException as error:
        if shows:
            traceback.print_exc()
        return "raised", f"{type(error).__name__}: {error}"[:500]
    return "loaded", ""


def _limit(nbytes: int) -> None:
    """Of address space, beyond what there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
