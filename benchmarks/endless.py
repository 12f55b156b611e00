"""A text without end read under `streaming`: is every stretch of it as likely as the first, and does memory stay?

    python benchmarks/endless.py
    python benchmarks/endless.py --tokens 200000 --policy streaming:tokens=1024,sinks=0
    python benchmarks/endless.py --tokens 200000 --policy morphkv:tokens=1024 --positions 262144

The tokens are forced upon the engine, which is asked at each how likely it was; a stretch that is read by itself, from
its own beginning and with all of its tokens in the cache, stands beside it. Positions that the model was not trained
for say what becomes of memory, not of the text: no stretch is read by itself then.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import torch

from pagoda import SamplingParams
from pagoda.config import EngineConfig, Environment
from pagoda.engine.engine import Engine
from pagoda.engine.request import new_request
from pagoda.kernels.dispatch import choose_kernels
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import load_model
from pagoda.models.tokenizer import load_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from tiny_corpus import load_corpus

from forced import Forced

BEGUN = 32  # tokens of a prompt


def loss(logits: torch.Tensor, token: int) -> float:
    return float(torch.logsumexp(logits, dim=-1) - logits[token])


def read(engine: Engine, tokens: list[int], policy: str) -> tuple[list[float], float, int]:
    """The loss of each token behind the first, tokens per second, and the most pages that were in use."""
    params = SamplingParams(temperature=0, max_tokens=len(tokens) - BEGUN, ignore_eos=True, kv_compression=policy)
    request = new_request("text", tokens[:BEGUN], params)
    request.constraint = form = Forced(tokens[BEGUN:], loss)
    engine.add(request)
    begun, most = monotonic(), 0
    while engine.has_work:
        engine.step()
        if len(form.notes) % 1000 == 0:
            counts = engine.inspector.stats().groups[0]
            most = max(most, counts.open + counts.in_use)
            engine.inspector.check_integrity()
    assert request.error is None, request.error
    return form.notes, len(form.notes) / (monotonic() - begun), most


@contextmanager
def checkpoint(positions: int | None) -> Iterator[Path]:
    """The embedded model, with so many positions."""
    if positions is None:
        yield EMBEDDED_MODEL
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in EMBEDDED_MODEL.iterdir():
            (folder / file.name).symlink_to(file)
        config = json.loads((EMBEDDED_MODEL / "config.json").read_text()) | {"max_position_embeddings": positions}
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/text/train"))
    parser.add_argument("--work", type=Path, default=Path("build/tiny"))
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--stretch", type=int, default=10_000, help="tokens of a line of the table")
    parser.add_argument(
        "--alone", type=int, default=2048, help="tokens of what is read by itself: what rows of training had"
    )
    parser.add_argument("--policy", default="streaming:tokens=1024")
    parser.add_argument("--positions", type=int, help="that the model has (default: what it was trained for)")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus(arguments.work, arguments.data, load_tokenizer(EMBEDDED_MODEL))
    with checkpoint(arguments.positions) as folder:
        model = load_model(folder, dtype="auto")
    # Documents follow one another without the token that ends them, which no output goes on behind.
    text = [token for token in corpus.held_out.tolist() if token not in model.eos_token_ids][: arguments.tokens]
    config = EngineConfig(kv_cache_memory_bytes=1 << 30, block_size=16)
    engine = Engine(model, choose_kernels(Environment.read()), config)
    losses, speed, most = read(engine, text, arguments.policy)
    print(f"{len(text):,} tokens, context {engine.max_model_len:,}, {arguments.policy}: {speed:.0f} tokens/s, ", end="")
    print(f"{most} pages in use at most\n")
    if arguments.positions is not None:
        return
    print("| tokens from | perplexity | its last tokens in a cache of their own |\n|---|---|---|")
    for start in range(0, len(losses), arguments.stretch):
        stretch = losses[start : start + arguments.stretch]
        end = start + len(stretch) + BEGUN
        alone = read(engine, text[max(end - arguments.alone, 0) : end], "none")[0]
        last = min(len(alone) // 2, len(stretch))  # these have much before them in either cache
        ours, theirs = (math.exp(sum(each[-last:]) / last) for each in (stretch, alone))
        print(f"| {start:,} | {math.exp(sum(stretch) / len(stretch)):.2f} | {ours:.2f}, alone {theirs:.2f} |")


if __name__ == "__main__":
    main()
