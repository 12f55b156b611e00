"""What kvpress loses by the methods that it shares with Pagoda; run by an interpreter that has it.

    python benchmarks/compression_quality.py --model FOLDER --tasks needle --write-cases cases.json --json ours.json
    python benchmarks/peers/kvpress_quality.py --model FOLDER --cases cases.json --json theirs.json

The same model, prompts, answers, budgets and figures; ways have Pagoda's names. `streaming` is not here, since kvpress
leaves keys where they were, nor `h2o`, since it keeps no share for the last tokens. In fp32, which torch multiplies
several times as fast as bf16 where the processor has no instructions for that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from answers import Case, compared, read_cases
from kvpress import (
    AdaKVPress,
    CriticalAdaKVPress,
    CriticalKVPress,
    ExpectedAttentionPress,
    KnormPress,
    KVzipPress,
    PyramidKVPress,
    RandomPress,
    SnapKVPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, DynamicCache


def snapkv(ratio: float) -> SnapKVPress:
    return SnapKVPress(compression_ratio=ratio, window_size=32, kernel_size=5)


def pyramidkv(ratio: float) -> PyramidKVPress:
    return PyramidKVPress(compression_ratio=ratio, window_size=32, kernel_size=5, beta=20)


# By what Pagoda calls it, given the share that is left out.
PRESSES: dict[str, Callable[[float], Any]] = {
    "snapkv:share={},window=32": snapkv,
    "snapkv:share={},window=32,critical=0.5": lambda ratio: CriticalKVPress(snapkv(ratio)),
    "snapkv:share={},window=32,head_floor=0.2": lambda ratio: AdaKVPress(snapkv(ratio), alpha_safeguard=0.2),
    "snapkv:share={},window=32,critical=0.5,head_floor=0.2": lambda ratio: CriticalAdaKVPress(snapkv(ratio)),
    "pyramidkv:share={},window=32": pyramidkv,
    "tova:share={},every=0": lambda ratio: TOVAPress(compression_ratio=ratio),
    "expected_attention:share={}": lambda ratio: ExpectedAttentionPress(compression_ratio=ratio),
    "knorm:share={}": lambda ratio: KnormPress(compression_ratio=ratio),
    "kvzip:share={}": lambda ratio: KVzipPress(compression_ratio=ratio, layerwise=True),
    "random:share={}": lambda ratio: RandomPress(compression_ratio=ratio, seed=0),
}


@torch.inference_mode()
def answered(model: Any, case: Case, press: Any, num_compressed: int) -> torch.Tensor:
    """Log-probabilities [answer tokens, vocabulary] where the first `num_compressed` tokens were compressed."""
    tokens = torch.tensor([case.prompt + case.answer[:-1]])
    cache = DynamicCache()
    with nullcontext() if press is None else press(model):
        logits = [model(tokens[:, :num_compressed], past_key_values=cache).logits]
    for position in range(num_compressed, tokens.shape[1]):  # masks of several are as long as the first layer's cache
        here = slice(position, position + 1)
        logits.append(model(tokens[:, here], past_key_values=cache, position_ids=torch.tensor([[position]])).logits)
    return torch.cat(logits, dim=1)[0, -len(case.answer) :].float().log_softmax(dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--cases", type=Path, required=True)
    add("--ways", nargs="+", default=list(PRESSES), help="of Pagoda's names, with {} for the share")
    add("--shares", nargs="+", type=float, default=[0.5, 0.25])
    add("--unseen", action="store_true", help="compress before the question")
    add("--json", type=Path, required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="sdpa").eval()
    config = model.config
    config.name_or_path = options.model  # KVzip looks for its tokenizer there
    config.head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)  # CriticalKV asks
    rows = []
    for task, cases in read_cases(options.cases).items():
        whole = [answered(model, case, None, len(case.prompt)) for case in cases]
        for way in options.ways:
            for share in options.shares:
                found = [
                    answered(
                        model,
                        case,
                        PRESSES[way](1 - share),
                        len(case.prompt) - (case.num_question if options.unseen else 0),
                    )
                    for case in cases
                ]
                result = compared(cases, found, whole, share)
                rows.append({"task": task, "way": way.format(share), **vars(result)})
                print(rows[-1], flush=True)
    options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
