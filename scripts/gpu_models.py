"""Models on a card: families token for token, formats, hits, graphs, eviction, sampling, memory. See gpu_check.py."""

from __future__ import annotations

import copy
import gc
import random
from array import array
from collections.abc import Callable
from typing import Any

import torch
from gpu_engine import num_proved, recorded

from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.engine.embedding import Embedder, Pooling
from pagoda.engine.request import Sequence, new_request
from pagoda.engine.sampling import sample
from pagoda.engine.together import draw_together
from pagoda.models import rounding
from pagoda.models.coded import decode
from pagoda.models.model import Model
from pagoda.models.stacked import StackedLinear

FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "bloom", "mpt", "falcon", "opt"),
    *("gpt_oss", "mixtral", "qwen3_moe", "olmo2", "cohere2", "llama4_text", "deepseek_v3", "minicpm3", "glm4"),
    *("starcoder2", "stablelm", "mamba", "mamba2", "qwen3_next", "lfm2", "falcon_h1", "gptj", "granite"),
)
TEXTS = (
    "Once upon a time there was a king who",
    "The history of the city begins",
    "She opened the letter and",
    "In the year 1848",
    "Of all the ships in the harbour, the smallest one",
    "It was the best of",
)
COMPRESSIONS = {
    "snapkv": "snapkv:tokens=96,window=16",
    "h2o": "h2o:tokens=96,every=8",
    "morphkv": "morphkv:tokens=96,window=16,every=8",
    "tova": "tova:tokens=96,every=8",
    "expected_attention": "expected_attention:tokens=96,future=64",
    "kvzip": "kvzip:share=0.5",
    "streaming": "streaming:tokens=96,every=32",
    "random": "random:tokens=96",
    "pyramidkv": "pyramidkv:tokens=96,window=16",
    "head_floor": "snapkv:tokens=96,window=16,head_floor=0.2",
}
QUANTIZATIONS = ("int8", "int4")
# Experts in codes: plain, with biases and a gate of their own, beside latents, beside shared ones.
MIXTURES = ("mixtral", "gpt_oss", "deepseek_v3", "qwen3_moe", "qwen2_moe")
# A choice between two tokens whose logits are so close is nobody's error.
TIE = 1e-3
GREEDY = SamplingParams(temperature=0, max_tokens=24)


def names() -> list[str]:
    return [
        *(f"model:family/{name}" for name in FAMILIES),
        *(f"model:format/{name}" for name in ("auto", "int8", "int4", "fp8_e4m3", "k8v4")),
        *(f"model:compression/{name}" for name in COMPRESSIONS),
        *(f"model:codes/{name}" for name in QUANTIZATIONS),
        *(f"model:experts/{name}" for name in MIXTURES),
        *(f"model:{name}" for name in ("processor", "batches", "eviction", "sampling", "draws", "memory", "requests")),
        *(f"model:{name}" for name in ("deterministic", "sparse")),
    ]


def run(name: str) -> dict[str, Any]:
    torch.backends.cudnn.allow_tf32 = False
    what, _, rest = name.partition("/")
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "family": family,
        "format": format_of_pages,
        "compression": compressed,
        "codes": coded_weights,
        "experts": coded_experts,
        "processor": as_on_the_processor,
        "batches": moving_batches,
        "eviction": eviction,
        "sampling": seeded,
        "draws": draws,
        "memory": memory,
        "requests": kinds_of_requests,
        "deterministic": deterministic,
        "sparse": read_in_part,
    }
    return parts[what](rest) if rest else parts[what]()


def family(name: str) -> dict[str, Any]:
    """Tokens in fp32, cold and warm, against transformers' own uncached forward on the processor."""
    network = build_tiny(name)
    return _as_transformers(copy.deepcopy(network).cuda(), network)


def coded_experts(name: str) -> dict[str, Any]:
    """The same of a mixture in codes, against the weights that these stand for. Steps are replayed."""
    rounding.MIN_ROWS = 2  # matrices of tiny models are small
    found = {}
    for quantization in QUANTIZATIONS:
        network = build_tiny(name)
        rounding.quantize(network, quantization)
        dense = copy.deepcopy(network)
        decode(dense)
        found[quantization] = _as_transformers(network.cuda(), dense)
        if not found[quantization]["proved"]:
            raise AssertionError(f"no step was replayed: {found}")
    return found


def _as_transformers(network: Any, on_processor: Any) -> dict[str, Any]:
    """Tokens of `network` where it is, against transformers' own forward of the other."""
    source = random.Random(0)
    prompts = [[source.randrange(2, 120) for _ in range(length)] for length in (5, 18, 37)]
    expected = [_greedy(on_processor, prompt, 12) for prompt in prompts]
    model = Model.from_transformers(network)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    options = {"skip_tokenizer_init": True, "block_size": 16, "kv_cache_memory_bytes": 8 << 20}
    ties = 0
    with LLM(model, **options) as llm:
        for _ in range(2):
            outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
            for output, (tokens, margins) in zip(outputs, expected, strict=True):
                ties += _check_tokens(list(output.outputs[0].token_ids), tokens, margins)
        stacked = sum(isinstance(module, StackedLinear) for module in model.network.modules())
        return {
            "kernels": llm.engine.kernel_choice.notices,
            "graphs": recorded(llm),
            "proved": num_proved(llm),
            "stacked": stacked,
            "ties": ties,
        }


def _greedy(network: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Tokens, and how far each is ahead of the second best."""
    tokens, margins = list(prompt), []
    for _ in range(count):
        with torch.inference_mode():
            top = network(torch.tensor([tokens]), use_cache=False).logits[0, -1].float().topk(2)
        tokens.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
    return tokens[len(prompt) :], margins


def _check_tokens(actual: list[int], expected: list[int], margins: list[float]) -> int:
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        if got != wanted:
            if margins[index] < TIE:
                return 1
            raise AssertionError(f"token {index} is {got}, not {wanted}, which is {margins[index]:.4f} ahead: {actual}")
    return 0


def format_of_pages(name: str) -> dict[str, Any]:
    """The embedded model in bf16: texts cold, warm, one by one and together are the same, or how many are not."""
    with LLM(device="cuda", dtype="bfloat16", kv_cache_dtype=name, kv_cache_memory_bytes=64 << 20) as llm:
        cold = _texts(llm, TEXTS)
        warm = _texts(llm, TEXTS)
        llm.reset_prefix_cache()
        alone = [_texts(llm, [text])[0] for text in TEXTS]
        llm.check_integrity()
        hits = llm.cache_stats()
    if cold != warm:
        raise AssertionError(f"warm texts differ: {cold} {warm}")
    return {"alone_differ": _differing(cold, alone), "loss": llm.engine.fit.loss, "stats": str(hits)[:200]}


def deterministic() -> dict[str, Any]:
    """The embedded model in bf16, which tries itself when it starts: the same texts together, warm, cut and alone."""
    options = {"device": "cuda", "dtype": "bfloat16", "deterministic": True, "kv_cache_memory_bytes": 64 << 20}
    with LLM(**options) as llm:
        together = _texts(llm, TEXTS)
        found = [_texts(llm, TEXTS), [_texts(llm, [text])[0] for text in TEXTS]]
        graphs, proved = recorded(llm), num_proved(llm)
    with LLM(**options, max_num_batched_tokens=16, max_num_seqs=3) as llm:
        found.append(_texts(llm, TEXTS))
    if any(each != together for each in found) or not proved:
        raise AssertionError(f"{together}\n{found}\n{graphs}")
    return {"texts": len(together), "graphs": graphs}


def _texts(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[str]:
    return [output.outputs[0].text for output in llm.generate(list(prompts), params, use_tqdm=False)]


def _differing(first: list[str], second: list[str]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


def as_on_the_processor() -> dict[str, Any]:
    """The embedded model in fp32 writes the same texts on both."""
    with LLM(dtype="float32", device="cpu", kv_cache_memory_bytes=64 << 20) as llm:
        expected = _texts(llm, TEXTS)
    with LLM(device="cuda", dtype="float32", kv_cache_memory_bytes=64 << 20) as llm:
        assert llm.engine.model.device.type == "cuda"
        actual = _texts(llm, TEXTS)
    if actual != expected:
        raise AssertionError(f"{expected}\n{actual}")
    return {"texts": len(actual)}


def compressed(name: str) -> dict[str, Any]:
    """Texts of sequences that keep some of their tokens, in fp32: as on the processor, but for scores that are even."""
    prompts = [" ".join(TEXTS[index:] + TEXTS[:index]) * 3 for index in range(len(TEXTS))]
    params = SamplingParams(temperature=0, max_tokens=40, kv_compression=COMPRESSIONS[name])
    found = []
    for device in ("cpu", "cuda"):
        with LLM(dtype="float32", device=device, kv_cache_memory_bytes=64 << 20) as llm:
            found.append(_texts(llm, prompts, params))
            llm.check_integrity()
    differ = _differing(*found)
    if differ > 1:
        raise AssertionError(f"{differ} of {len(prompts)} texts differ: {found}")
    return {"differ": differ}


def read_in_part() -> dict[str, Any]:
    """Texts of tokens that read some of their pages, in fp32: as on the processor, but for bounds that are even."""
    prompts = [" ".join(TEXTS[index:] + TEXTS[:index]) * 3 for index in range(len(TEXTS))]
    params = SamplingParams(temperature=0, max_tokens=40)
    found, options = [], {"dtype": "float32", "sparse_attention": "quest:tokens=96", "kv_cache_memory_bytes": 64 << 20}
    for device in ("cpu", "cuda"):
        with LLM(device=device, **options) as llm:
            found.append(_texts(llm, prompts, params))
            graphs, proved = recorded(llm), num_proved(llm)
    differ = _differing(*found)
    if differ > 1 or not proved:
        raise AssertionError(f"{differ} of {len(prompts)} texts differ: {found}; {graphs}")
    return {"differ": differ, "graphs": graphs}


def coded_weights(name: str) -> dict[str, Any]:
    """Texts over codes, in fp32: those of the processor over the weights that these stand for. Steps are replayed."""
    options = {"dtype": "float32", "quantization": name, "kv_cache_memory_bytes": 64 << 20}
    with LLM(device="cpu", activations="full", **options) as llm:
        expected, dense = _texts(llm, TEXTS), llm.engine.model.weight_nbytes
    with LLM(device="cuda", **options) as llm:
        actual, held = _texts(llm, TEXTS), llm.engine.model.weight_nbytes
        alone = [_texts(llm, [text])[0] for text in TEXTS]
        graphs, proved = recorded(llm), num_proved(llm)
    if actual != expected or alone != expected:
        raise AssertionError(f"{expected}\n{actual}\n{alone}")
    if held > dense / 2 or not proved:
        raise AssertionError(f"weights take {held} bytes of {dense}; {graphs}")
    return {"texts": len(actual), "weights": held / dense, "graphs": graphs}


def moving_batches() -> dict[str, Any]:
    """Sequences that begin and end at different times, through graphs of many sizes, in fp32."""
    source = random.Random(1)
    prompts = [f"{TEXTS[source.randrange(len(TEXTS))]} {source.randrange(1000)}" for _ in range(60)]
    params = [SamplingParams(temperature=0, max_tokens=source.randrange(1, 60)) for _ in prompts]
    with LLM(device="cuda", dtype="float32", kv_cache_memory_bytes=256 << 20, max_num_seqs=24) as llm:
        together = _texts(llm, prompts, params)
        graphs, proved = recorded(llm), num_proved(llm)
        ahead = llm.engine.ahead
        rows = {"queued": ahead.num_rows, "taken": ahead.num_taken}
        llm.reset_prefix_cache()
        alone = [_texts(llm, [prompt], each)[0] for prompt, each in zip(prompts, params, strict=True)]
        llm.check_integrity()
    if not proved:
        raise AssertionError(f"no step was replayed: {graphs}")
    if not rows["taken"]:
        raise AssertionError("no step was queued ahead")
    return {"graphs": graphs, "proved": proved, "ahead": rows, "differ": _differing(together, alone)}


def eviction() -> dict[str, Any]:
    """Hundreds of prompts that share beginnings through a pool that holds a few, against each alone."""
    source = random.Random(2)
    prompts = []
    for _ in range(150):
        beginning = " ".join(TEXTS[: source.randrange(1, 4)])
        prompts.append(f"{beginning} {source.randrange(40)} and then {TEXTS[source.randrange(6)]}")
    params = SamplingParams(temperature=0, max_tokens=30)
    with LLM(device="cuda", dtype="float32", kv_cache_memory_bytes=64 << 20) as llm:
        page_nbytes = llm.engine.memory.geometries[0].page_nbytes
        expected = [_texts(llm, [prompt], params)[0] for prompt in prompts]
    with LLM(
        device="cuda",
        dtype="float32",
        kv_cache_memory_bytes=24 * page_nbytes,
        max_num_seqs=8,
        max_num_batched_tokens=64,
    ) as llm:
        actual = _texts(llm, prompts, params)
        llm.check_integrity()
        evictions = llm.cache_stats().evicted_pages
    differ = _differing(actual, expected)
    if differ > len(prompts) // 20 or not evictions:
        raise AssertionError(f"{differ} of {len(prompts)} texts differ after {evictions} evictions")
    return {"differ": differ, "evictions": evictions}


def seeded() -> dict[str, Any]:
    """Seeded texts in fp32, on the card and on the processor."""
    params = [
        SamplingParams(
            max_tokens=32, seed=index, temperature=0.9, top_p=(1.0, 0.9)[index % 2], top_k=(0, 40)[index // 2 % 2]
        )
        for index in range(24)
    ]
    prompts = [TEXTS[index % len(TEXTS)] for index in range(24)]
    with LLM(dtype="float32", device="cpu", kv_cache_memory_bytes=64 << 20) as llm:
        expected = _texts(llm, prompts, params)
    with LLM(device="cuda", dtype="float32", kv_cache_memory_bytes=64 << 20) as llm:
        actual = _texts(llm, prompts, params)
    differ = _differing(expected, actual)
    if differ > 3:
        raise AssertionError(f"{differ} of {len(prompts)} seeded texts differ")
    return {"differ": differ}


def draws() -> dict[str, Any]:
    """Draws on the card and on the processor from the same logits, row by row."""
    generator = torch.Generator().manual_seed(0)
    differ = count = 0
    for vocab in (50, 5000, 151936):
        for params in (
            SamplingParams(temperature=1.0),
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=0.7, top_p=0.9),
            SamplingParams(temperature=1.3, top_k=20),
            SamplingParams(temperature=1.0, min_p=0.05, top_k=50, top_p=0.95),
        ):
            logits = torch.randn(40, vocab, generator=generator) * 4
            sequences = [_drawing(params, index) for index in range(len(logits))]
            together = draw_together(logits.cuda(), [(s, row) for row, s in enumerate(sequences)]).tolist()
            again = [_drawing(params, index) for index in range(len(logits))]
            apart = [sample(row, s, frozenset()) for row, s in zip(logits, again, strict=True)]
            differ += sum(one != other for one, other in zip(together, apart, strict=True))
            count += len(logits)
    if differ > count // 100:
        raise AssertionError(f"{differ} of {count} draws differ")
    return {"differ": differ, "draws": count}


def _drawing(params: SamplingParams, seed: int) -> Sequence:
    return Sequence(new_request(str(seed), [1], params), 0, array(TOKEN_TYPE, [1]), random.Random(seed))


def memory() -> dict[str, Any]:
    """What 30 engines leave behind on the card."""
    taken = []
    for _ in range(30):
        with LLM(device="cuda", dtype="bfloat16", kv_cache_memory_bytes=64 << 20) as llm:
            _texts(llm, TEXTS[:2], SamplingParams(temperature=0, max_tokens=6))
        del llm
        gc.collect()
        taken.append(torch.cuda.memory_allocated())
    if taken[-1] > taken[4] + (8 << 20):
        raise AssertionError(f"memory grows: {taken}")
    free, total = torch.cuda.mem_get_info()
    with LLM(device="cuda", dtype="bfloat16", gpu_memory_utilization=0.5) as llm:
        pages = llm.engine.memory.nbytes
        _texts(llm, TEXTS)
        left = torch.cuda.mem_get_info()[0]
    return {"allocated": taken[::5], "free_gib": free >> 30, "pages_gib": pages >> 30, "used_share": 1 - left / total}


def kinds_of_requests() -> dict[str, Any]:
    """Log-probabilities, several samples, penalties, biases, embeddings: as on the processor, in fp32."""
    params = [
        SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=2),
        SamplingParams(temperature=0, max_tokens=12, repetition_penalty=1.3, presence_penalty=0.5),
        SamplingParams(temperature=0, max_tokens=12, logit_bias={300: 50.0}, min_tokens=4),
        SamplingParams(temperature=0.8, max_tokens=8, n=3, seed=5),
    ]
    found, vectors = [], []
    for device in ("cpu", "cuda"):
        with LLM(dtype="float32", device=device, kv_cache_memory_bytes=64 << 20) as llm:
            outputs = llm.generate([TEXTS[0]] * len(params), params, use_tqdm=False)
            found.append([[sample.text for sample in output.outputs] for output in outputs])
            embedder = Embedder(llm.engine.model, llm.engine.kernels)
            vectors.append(embedder.begin([5, 9, 300, 41], Pooling.MEAN).advance(4))
    if found[0] != found[1]:
        raise AssertionError(f"{found[0]}\n{found[1]}")
    return {"embedding": float((vectors[0] - vectors[1]).abs().max())}
