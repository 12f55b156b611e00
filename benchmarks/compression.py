"""What it costs to compress a prompt or to read it in part, and how fast sequences decode after it.

    python benchmarks/compression.py
    python benchmarks/compression.py --context 8192 --budget 2048 --format int8
    python benchmarks/compression.py --context 32640 --budget 2048 --drawn
    python benchmarks/compression.py --questions 16 --context 2000

Each way by turns over one prompt that is cached: its first token tells what scoring and moving cost beside the rows
that are computed in any case, the others how fast it decodes. Decoding at a context of the budget is the limit.
With --drawn all but the end of the prompt is drawn instead of computed, which would take long.
With --questions the embedded model is asked so many on one prefix, which `after` says is compressed before each.
"""

from __future__ import annotations

import argparse
import random
import statistics

import torch

from pagoda import LLM, SamplingParams
from pagoda.commands.shapes import shape_config
from pagoda.models.attention import PagedStep
from pagoda.models.loader import model_from_config

SHAPE = "qwen2.5-0.5b"
VOCABULARY = 150_000
DECODED = 96
QUESTION_TOKENS = 16
PREFIXES = ("none", "kvzip:share=0.4", "kvzip:share=0.4,chunk=512", "snapkv:share=0.4", "h2o:share=0.4,every=0")
READS_LESS = "quest"
POLICIES = (
    *("none", "snapkv:{},window=32", "snapkv:{},window=32,head_floor=0.2", "pyramidkv:{},window=32"),
    *("knorm:{}", "random:{}", "streaming:{}"),
    *("tova:{},every=32", "morphkv:{},window=32,every=32", "quest:{}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--format", default="auto")
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--questions", type=int, default=0, help="ask so many on one prefix instead")
    parser.add_argument("--drawn", action="store_true", help="draw what pages of the prompt hold, in bf16")
    arguments = parser.parse_args()
    if arguments.questions:
        ask(arguments.questions, arguments.context, arguments.repeats)
        return
    model = model_from_config(shape_config(SHAPE), dtype="bfloat16")
    prompt = random.Random(0).choices(range(VOCABULARY), k=arguments.context)
    options = {"kv_cache_dtype": arguments.format, "kv_cache_memory_bytes": 1 << 30, "skip_tokenizer_init": True}
    if any(name.startswith(READS_LESS) for name in arguments.policies):
        options["sparse_attention"] = f"{READS_LESS}:tokens={arguments.budget}"  # of whoever asks for it
    with LLM(model, **options) as llm:
        if arguments.drawn:
            draw_chunks(llm)
        run(llm, prompt[:64], "none")
        computed, _ = run(llm, prompt, "none")
        first: dict[str, list[float]] = {}
        speeds: dict[str, list[float]] = {}
        ways = {name.format(f"tokens={arguments.budget}"): prompt for name in arguments.policies}
        ways[f"none, a context of {arguments.budget}"] = prompt[: arguments.budget]
        for _ in range(arguments.repeats):
            for name, tokens in ways.items():
                ttft, speed = run(llm, tokens, name.split(", a context")[0])
                first.setdefault(name, []).append(ttft)
                speeds.setdefault(name, []).append(speed)
    made = f"{'drawn' if arguments.drawn else 'computed'} in {computed:.2f} s"
    told = f"{arguments.context} tokens in {arguments.format}, {made}"
    print(f"{SHAPE}, {told}; the rest is of the cached prompt, medians of {arguments.repeats}\n")
    print("| compression | first token, s | least to most | decodes, tokens/s | least to most |")
    print("|---|---|---|---|---|")
    for name in ways:
        print(f"| {name} | {spread(first[name], 3)} | {spread(speeds[name], 1)} |")


def ask(num_questions: int, context: int, repeats: int) -> None:
    """Print how long the first token of the first question takes, and of those behind it."""
    first: dict[str, list[float]] = {}
    later: dict[str, list[float]] = {}
    with LLM() as llm:
        vocabulary, draw = len(llm.tokenizer), random.Random(0)
        run(llm, draw.choices(range(vocabulary), k=64), "none")
        for _ in range(repeats):
            for name in PREFIXES:
                policy = name if name == "none" else f"{name},after={context}"
                prefix = draw.choices(range(vocabulary), k=context)
                asked = [prefix + draw.choices(range(vocabulary), k=QUESTION_TOKENS) for _ in range(num_questions)]
                seconds = [run(llm, each, policy)[0] for each in asked]
                first.setdefault(name, []).append(seconds[0])
                later.setdefault(name, []).append(statistics.median(seconds[1:]))
    print(f"{num_questions} questions on {context} tokens, the embedded model, medians of {repeats}\n")
    print("| compression | first token of the first, s | least to most | of the others, s | least to most |")
    print("|---|---|---|---|---|")
    for name in PREFIXES:
        print(f"| {name} | {spread(first[name], 3)} | {spread(later[name], 4)} |")


def draw_chunks(llm: LLM) -> None:
    """Have chunks drawn that do not end a prompt."""
    model, layer = llm.engine.model, llm.engine._forward.sites[0].layer
    forward, size = model.forward, layer.geometry.page_tokens

    def drawing(
        token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor, step: PagedStep
    ) -> torch.Tensor:
        if len(logit_rows):
            return forward(token_ids, positions, logit_rows, step)
        indices = step.views[0].page_indices.long()[-len(token_ids) // size - 1 :]
        layer.pages[indices] = torch.randn(len(indices), layer.pages.shape[1] // 2).to(torch.bfloat16).view(torch.uint8)
        return torch.empty(0, model.vocab_size)

    model.forward = drawing  # type: ignore[method-assign]


def run(llm: LLM, prompt: list[int], way: str) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it."""
    sparse, policy = (way, "none") if way.startswith(READS_LESS) else ("none", way)
    params = SamplingParams(
        temperature=0, max_tokens=DECODED, ignore_eos=True, kv_compression=policy, sparse_attention=sparse
    )
    metrics = llm.generate([prompt], params)[0].metrics
    assert metrics.ttft_seconds is not None
    assert metrics.last_token is not None
    assert metrics.first_token is not None
    return metrics.ttft_seconds, (DECODED - 1) / (metrics.last_token - metrics.first_token)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} | {min(values):.{digits}f} to {max(values):.{digits}f}"


if __name__ == "__main__":
    main()
