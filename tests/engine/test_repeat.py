"""Sequences that repeat their prompt before they are compressed, against attention written out in plain torch."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from engine.test_compression import NEW_TOKENS, page_nbytes, params, tokens_of
from engine.tiny import CONTEXT, PAGE_TOKENS, POOL_NBYTES, VOCABULARY, make_engine, make_llm, tiny_config
from oracle.families import build_tiny
from pagoda.cache.compression.repeat import WORDLESS, RepeatPrompt, Repeats
from pagoda.config import EngineConfig
from pagoda.engine.engine import Engine
from pagoda.engine.repeating import read_repeat_prompt
from pagoda.engine.request import Phase, new_request
from pagoda.errors import InvalidSamplingError
from pagoda.kernels.dispatch import choose_kernels
from pagoda.layouts.attention import AttentionLayout
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.loader import Model
from pagoda.models.tokenizer import load_tokenizer
from pagoda.registry import lookup

PROMPT = random.Random(0).sample(range(VOCABULARY), k=150)
WORDS = RepeatPrompt((7, 8, 9), (11, 12, 13, 14, 15))
SINKS = 4
FAMILIES = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}
EVEN = "kvzip:tokens=60,chunk=48"
DENSE = (
    EVEN,
    "kvzip:tokens=50",  # one chunk
    "kvzip:tokens=60,window=9,chunk=37",
    "kvzip:share=0.4,chunk=48,after=110",
    "kvzip:tokens=60,chunk=48,critical=0.5",
    "kvzip:tokens=64,chunk=48,head_floor=0.2",
    "kvzip:tokens=64,chunk=50,head_floor=0,window=5,after=131",
)


def network_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = FAMILIES[family]
    config = kind.config_class(**{**tiny_config().to_dict(), "head_dim": 16, "model_type": family})
    return kind._from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    return network_of(request.param)


@pytest.fixture(scope="module")
def model(network: PreTrainedModel) -> Model:
    return Model.from_transformers(network)


@pytest.fixture(scope="module")
def llama() -> Model:
    return Model.from_transformers(network_of("llama"))


def by_pages(first: int, stop: int) -> slice:
    return slice(first // PAGE_TOKENS * PAGE_TOKENS, -(-stop // PAGE_TOKENS) * PAGE_TOKENS)


class Written:
    """A model whose attention is written out; nothing of it is cached. Keys and values go through `stored`."""

    def __init__(self, network: PreTrainedModel, text: str, words: RepeatPrompt = WORDLESS) -> None:
        self.network, self.words = network, words
        self.options = dict(each.split("=") for each in text.partition(":")[2].split(","))
        self.chunk, self.window = int(self.options.get("chunk", 2048)), int(self.options.get("window", 0))
        self.stored: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows
        self.due = 0
        self.kept: list[torch.Tensor] = []  # by layer, bool [KV heads, due]
        self.weights: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = query[0], self.stored(key[0]), self.stored(value[0])
        group, length = len(query) // len(key), key.shape[1]
        sees = torch.ones(len(key), length, length).tril().bool()
        if self.kept:
            sees[:, self.due :, : self.due] &= self.kept[module.layer_idx][:, None]
        logits = query @ key.repeat_interleave(group, dim=0).mT / key.shape[-1] ** 0.5
        weights = logits.masked_fill(~sees.repeat_interleave(group, dim=0), float("-inf")).softmax(-1)
        self.weights.append(weights)
        self.values.append(value)
        return (weights @ value.repeat_interleave(group, dim=0)).transpose(0, 1)[None], None

    @torch.inference_mode()
    def run(self, tokens: list[int]) -> torch.Tensor:
        self.weights, self.values = [], []
        return self.network(torch.tensor([tokens]), use_cache=False).logits[0, -1]

    def generate(self, prompt: list[int], count: int) -> list[int]:
        tokens, self.due = list(prompt), int(self.options.get("after", len(prompt)))
        scores = self.scores(tokens[: self.due])
        budget = int(self.options.get("tokens") or float(self.options["share"]) * self.due)
        self.kept = [self.best(layer, each, budget) for layer, each in enumerate(scores)]
        for _ in range(count):
            tokens.append(int(self.run(tokens).argmax()))
        return tokens[len(prompt) :]

    def scores(self, context: list[int]) -> list[torch.Tensor]:
        """By layer, [KV heads, tokens]: of each chunk while it is repeated."""
        found = [torch.zeros(2, 0) for _ in self.network.model.layers]
        for first in range(0, len(context), self.chunk):
            chunk = context[first : first + self.chunk]
            asked = [*self.words.part, *context[first - 8 : first]] if first else [*self.words.whole]
            self.run([*context, *asked, *chunk])
            for layer, weights in enumerate(self.weights):
                counted = torch.zeros(weights.shape[-1])
                for part in (by_pages(0, SINKS), by_pages(first, first + len(chunk)), by_pages(len(context), 1 << 20)):
                    counted[part] = 1
                relative = weights[:, len(context) :] * counted
                relative = relative / relative.sum(dim=-1, keepdim=True)
                peaks = relative[..., first : first + len(chunk)].amax(dim=1).unflatten(0, (2, -1)).amax(dim=1)
                found[layer] = torch.cat((found[layer], peaks), dim=1)
        self.run(context)
        return found

    def best(self, layer: int, scores: torch.Tensor, budget: int) -> torch.Tensor:
        scores, count = scores[:, : self.due - self.window].clone(), budget - self.window
        scores[:, :SINKS] = 9
        kept = torch.zeros(2, self.due, dtype=torch.bool)
        kept[:, self.due - self.window :] = True
        for head, own in enumerate(self.counts(scores, budget)):
            ranked = scores[head].argsort(descending=True)
            if "critical" in self.options:
                added = (scores[head] + 1e-4) * self.norms(layer, head)[: scores.shape[1]]
                ranked = added.index_fill(0, ranked[: count // 2], 1e9).argsort(descending=True)
            kept[head, ranked[:own]] = True
        return kept

    def counts(self, scores: torch.Tensor, budget: int) -> list[int]:
        """How many tokens each of two heads keeps beside the window: whole pages, if they may have other numbers."""
        if "head_floor" not in self.options:
            return [budget - self.window] * 2
        pages = -(-budget // PAGE_TOKENS)
        safe = max(int(float(self.options["head_floor"]) * pages * PAGE_TOKENS), self.window, 1)
        total, most = 2 * (pages * PAGE_TOKENS - self.window), self.due // PAGE_TOKENS * PAGE_TOKENS - self.window
        raised = scores.sort(dim=-1, descending=True).values
        raised[:, : safe - self.window] = 9
        first = sum(
            int(index) < raised.shape[1] for index in raised.flatten().argsort(descending=True, stable=True)[:total]
        )
        first = min(max(first, total - most), most)
        ways = range(-(-safe // PAGE_TOKENS), min(2 * pages, self.due // PAGE_TOKENS) + 1)
        given = min(
            (way for way in ways if 2 * pages - way in ways),
            key=lambda way: abs(way * PAGE_TOKENS - self.window - first),
        )
        return [given * PAGE_TOKENS - self.window, (2 * pages - given) * PAGE_TOKENS - self.window]

    def norms(self, layer: int, head: int) -> torch.Tensor:
        projection, width = self.network.model.layers[layer].self_attn.o_proj, 16
        with torch.inference_mode():
            rows = [
                pad(self.values[layer][head], (width * each, width * (3 - each))) for each in (2 * head, 2 * head + 1)
            ]
            return torch.stack([projection(each).abs().sum(dim=-1) for each in rows]).mean(dim=0)


@pytest.fixture
def written(network: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Written]]:
    """Makes models whose attention is written out; it is transformers' own again after the test."""

    def make(text: str, *words: RepeatPrompt) -> Written:
        found = Written(network, text, *words)
        monkeypatch.setattr(importlib.import_module(type(network).__module__), "eager_attention_forward", found.attend)
        return found

    return make


@pytest.mark.parametrize("text", DENSE)
def test_tokens_are_those_of_written_out_attention(model: Model, written: Callable[..., Written], text: str) -> None:
    expected = written(text).generate(PROMPT, NEW_TOKENS)
    with make_llm(model) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected]
        assert tokens_of(llm, [PROMPT], None) != [expected]
    with make_llm(model, max_num_batched_tokens=37, max_num_seqs=8) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected], "however a prompt is cut"
        assert tokens_of(llm, [PROMPT, PROMPT[:130], PROMPT], text)[::2] == [expected] * 2, "warm, beside others"


def test_what_is_asked_is_read_before_each_chunk(
    network: PreTrainedModel, model: Model, written: Callable[..., Written]
) -> None:
    expected = written(EVEN, WORDS).generate(PROMPT, NEW_TOKENS)
    assert answers(model, {"words": WORDS}, [PROMPT], EVEN) == [expected]
    assert answers(model, {"words": WORDS, "max_num_batched_tokens": 37, "max_num_seqs": 8}, [PROMPT], EVEN) == [
        expected
    ]
    assert answers(model, {}, [PROMPT], EVEN) != [expected]


def answers(model: Model, options: dict[str, Any], prompts: list[list[int]], policy: str) -> list[list[int]]:
    words = options.pop("words", WORDLESS)
    pages = {"kv_cache_memory_bytes": POOL_NBYTES, "block_size": PAGE_TOKENS}
    config = EngineConfig(**{**pages, **options})
    engine = Engine(model, choose_kernels(config.environment), config, repeat_prompt=words)
    requests = [new_request(str(number), prompt, params(policy)) for number, prompt in enumerate(prompts)]
    for each in requests:
        engine.add(each)
    while engine.has_work:
        engine.step()
        engine.inspector.check_integrity()
    return [each.sequences[0].output_tokens for each in requests]


def test_scores_are_of_keys_as_they_are_stored(model: Model, written: Callable[..., Written]) -> None:
    found, format = written(EVEN), lookup("format", "int8")

    def stored(rows: torch.Tensor) -> torch.Tensor:
        plane = AttentionLayout(2, 16, 16).planes[0]
        return format.decode(format.encode(rows, plane)[None], plane)[0]

    found.stored = stored
    expected = found.generate(PROMPT, NEW_TOKENS)
    with make_llm(model, kv_cache_dtype="int8", kv_cache_calibration="none") as llm:
        assert tokens_of(llm, [PROMPT], EVEN) == [expected]


@pytest.mark.parametrize("format", ["bf16", "fp16", "int8", "fp8_e4m3", "int4_plain", "int4_rotated", "k8v4"])
def test_cold_warm_and_batched_are_the_same_in_every_format(llama: Model, format: str) -> None:
    prompts = [PROMPT[:count] for count in (50, 90, 131, 150)]
    with make_llm(llama, kv_cache_dtype=format, kv_cache_calibration="none") as llm:
        for policy in (EVEN, DENSE[-1].replace("131", "80")):
            llm.reset_prefix_cache()
            alone = [tokens_of(llm, [prompt], policy)[0] for prompt in prompts]
            llm.reset_prefix_cache()
            assert tokens_of(llm, prompts, policy) == alone, "cold and together"
            assert tokens_of(llm, prompts, policy) == alone, "warm"


def test_what_is_repeated_is_no_output_and_nobody_hits_it(llama: Model) -> None:
    """It is computed, and that is all that is told of it: what was asked for is the prompt, once."""
    with make_llm(llama, max_num_batched_tokens=64, max_num_seqs=8) as llm:
        [output] = llm.generate([PROMPT], params(EVEN))
        metrics = output.metrics
        repeated = len(PROMPT) + 4 + 3 * 8  # the last token of the prompt four times, and three cues
        assert metrics.num_computed_tokens == len(PROMPT) + repeated + NEW_TOKENS - 1
        assert (metrics.num_recomputed_tokens, metrics.num_preemptions) == (0, 0)
        assert (len(output.prompt_token_ids), len(output.outputs[0].token_ids)) == (len(PROMPT), NEW_TOKENS)
        [counts], num_compressed = llm.cache_stats().groups, llm.cache_stats().compacted_pages
        assert counts.idle == -(-len(PROMPT) // PAGE_TOKENS) + num_compressed
        [again] = llm.generate([[*PROMPT, *PROMPT[:60]]], params(None))
        assert again.num_cached_tokens == len(PROMPT)
        [warm] = llm.generate([PROMPT], params(EVEN))
        assert warm.num_cached_tokens == len(PROMPT) - 1
        assert warm.outputs[0].token_ids == output.outputs[0].token_ids


def test_a_budget_beyond_the_prompt_repeats_nothing(llama: Model) -> None:
    with make_llm(llama) as llm:
        [exact] = llm.generate([PROMPT], params(None, logprobs=0))
        llm.reset_prefix_cache()
        [same] = llm.generate([PROMPT], params(f"kvzip:tokens={len(PROMPT)},chunk=48", logprobs=0))
        assert same.metrics.num_computed_tokens == len(PROMPT) + NEW_TOKENS - 1
        assert same.outputs[0].logprobs == exact.outputs[0].logprobs


def test_others_go_on_while_one_repeats_its_prompt(llama: Model) -> None:
    engine = make_engine(llama, max_num_batched_tokens=20, max_num_seqs=4)
    other = new_request("other", PROMPT[:5], params(None, max_tokens=100))
    engine.add(other)
    engine.step()
    engine.add(new_request("repeats", PROMPT, params(EVEN)))
    before, steps = other.sequences[0].num_output_tokens, 0
    while not any(event.sequence.request.request_id == "repeats" for event in engine.step()):
        engine.inspector.check_integrity()
        steps += 1
    assert steps > 15, "it took its time"
    assert other.sequences[0].num_output_tokens - before == steps + 1


def test_nobody_waits_for_a_page_whose_sequence_repeats_first(llama: Model) -> None:
    """Of prompts that share a beginning the second waits for what the first is about to write, but not so long."""
    engine = make_engine(llama, max_num_batched_tokens=40, max_num_seqs=4)
    engine.add(new_request("repeats", PROMPT, params("kvzip:tokens=60,chunk=16,after=100")))
    engine.add(new_request("follows", PROMPT, params(None)))
    first = None
    while first is None:
        first = next((event.sequence.request.request_id for event in engine.step()), None)
    assert first == "follows"


def test_who_is_sent_back_while_it_repeats_begins_again(llama: Model) -> None:
    """Answers of others grow until nothing is left for what the last one repeats."""
    policy = "kvzip:tokens=30,chunk=60"
    prompts = [[*random.Random(seed).sample(range(VOCABULARY), k=60)] for seed in range(3)]
    alone = [answers(llama, {}, [prompt], policy)[0] for prompt in prompts]
    options = {"max_num_batched_tokens": 4, "max_num_seqs": 4}
    engine = make_engine(llama, kv_cache_memory_bytes=15 * page_nbytes(llama), **options)
    grows = new_request("grows", PROMPT[:20], params(None, max_tokens=190))
    engine.add(grows)
    for _ in range(80):
        engine.step()
    requests = [new_request(str(number), prompt, params(policy)) for number, prompt in enumerate(prompts)]
    for each in requests:
        engine.add(each)
    sent_back = set[str]()
    while engine.has_work:
        repeating = {each for each in engine._scheduler.running if each.repeating is not None}
        engine.step()
        engine.inspector.check_integrity()
        sent_back |= {each.request.request_id for each in repeating if each.phase is Phase.WAITING}
    assert sent_back, "as it is meant to be"
    assert [each.sequences[0].output_tokens for each in requests] == alone
    assert grows.sequences[0].num_output_tokens == 190


def test_who_is_cancelled_while_it_repeats_leaves_nothing_behind(llama: Model) -> None:
    for steps in range(1, 24):
        engine = make_engine(llama, max_num_batched_tokens=20, max_num_seqs=4)
        engine.add(new_request("cancelled", PROMPT, params(EVEN)))
        for _ in range(steps):
            engine.step()
        engine.cancel("cancelled")
        engine.inspector.check_integrity()
        [counts] = engine.inspector.stats().groups
        assert counts.free + counts.idle == counts.total


@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "gemma3_text", "deepseek_v3"])
def test_states_windows_and_latents_come_back_as_they_were(family: str) -> None:
    """What is repeated goes on from a copy of each, which is forgotten."""
    model, prompt = Model.from_transformers(build_tiny(family)), [64 + token % 64 for token in PROMPT]
    policy = "kvzip:tokens=100,chunk=48,after=120"
    cold = answers(model, {}, [prompt], policy)
    assert answers(model, {"max_num_batched_tokens": 37, "max_num_seqs": 8}, [prompt, prompt[:80], prompt], policy)[
        ::2
    ] == [*cold, *cold]
    exact = answers(model, {}, [prompt], None)
    assert answers(model, {}, [prompt], "kvzip:tokens=119,chunk=48,after=120") != [], "one token less"
    assert answers(model, {}, [prompt], "kvzip:tokens=120,chunk=48,after=120") == exact


def test_there_has_to_be_room_for_what_is_repeated(llama: Model) -> None:
    """Behind the prompt, up to the end of the context: the largest chunk that is named fits, and one more does not."""
    prompt = [token % VOCABULARY for token in range(CONTEXT - 100)]
    engine = make_engine(llama)
    with pytest.raises(InvalidSamplingError, match=r"412 tokens repeated .* at most 512 here; give chunk=76 or less"):
        engine.add(new_request("refused", prompt, params("kvzip:tokens=60")))
    with pytest.raises(InvalidSamplingError, match=r"512 here; give chunk=76 or less"):
        engine.add(new_request("refused", prompt, params("kvzip:tokens=60,chunk=77")))
    with pytest.raises(InvalidSamplingError, match=r"512 here; shorten what is compressed"):
        engine.add(new_request("refused", [*prompt, *prompt[:80]], params("kvzip:tokens=60,chunk=16")))
    assert not engine.has_work
    request = new_request("fits", prompt, params("kvzip:tokens=60,chunk=76"))
    engine.add(request)
    while engine.has_work:
        engine.step()
    assert request.sequences[0].num_output_tokens == NEW_TOKENS


def test_who_has_no_room_to_repeat_does_not_wait_for_nobody(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would begin again and again. Here less is counted than it takes."""
    monkeypatch.setattr(Repeats, "most_slots", lambda *_: 0)
    engine = make_engine(llama, kv_cache_memory_bytes=10 * page_nbytes(llama))
    requests = [new_request(str(number), PROMPT[number:][:100], params("kvzip:tokens=40")) for number in range(2)]
    for each in requests:
        engine.add(each)
    while engine.has_work:
        engine.step()
        engine.inspector.check_integrity()
    assert all("not enough pages to repeat the prompt" in str(each.error) for each in requests)


def test_words_are_those_of_the_tokenizer() -> None:
    tokenizer = load_tokenizer(EMBEDDED_MODEL)
    words = read_repeat_prompt(tokenizer, 1 << 20)
    assert tokenizer.decode(words.whole) == "\n\nRepeat the previous context exactly."
    assert tokenizer.decode(words.part).endswith("exactly, starting with ")
    assert read_repeat_prompt(tokenizer, max(words.whole)) == WORDLESS, "of another model"
    assert read_repeat_prompt(None, 1 << 20) == WORDLESS
