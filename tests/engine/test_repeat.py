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

from engine.test_compression import NEW_TOKENS, tokens_of
from engine.tiny import PAGE_TOKENS, VOCABULARY, make_llm, tiny_config
from pagoda.cache.compression.repeat import WORDLESS, RepeatPrompt
from pagoda.models.loader import Model

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
