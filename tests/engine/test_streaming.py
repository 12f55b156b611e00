"""Sequences of which the first and last pages are kept, against the paper's own arithmetic, beyond context and pool."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaForCausalLM

from engine.tiny import CONTEXT, VOCABULARY, make_engine, make_llm, tiny_config, windowed_model
from engine.tiny import PAGE_TOKENS as PAGE
from pagoda import LLM, SamplingParams
from pagoda.engine.request import new_request
from pagoda.errors import ConfigError, InvalidSamplingError, PromptTooLongError
from pagoda.models.loader import Model, model_from_config

PROMPT = random.Random(0).choices(range(VOCABULARY), k=150)
LONG = random.Random(1).choices(range(VOCABULARY), k=CONTEXT + 200)
STREAMING = "streaming:tokens=64,sinks=4,every=32"


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(tiny_config(), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model(network: LlamaForCausalLM) -> Model:
    return Model.from_transformers(network)


def tokens_of(llm: LLM, prompt: list[int], count: int, **asked: Any) -> list[int]:
    params = SamplingParams(**{"temperature": 0, "max_tokens": count, **asked})
    return llm.generate([prompt], params)[0].outputs[0].token_ids


class PaperCache:
    """Llama whose keys are kept as they are before they are rotated, and rotated to where they lie in the cache.

    Nothing of it is as in the engine: that leaves queries and last keys where they are, and turns the first.
    """

    def __init__(self, network: LlamaForCausalLM, sinks: int, budget: int, every: int) -> None:
        self.network, self.sinks, self.budget, self.every = network, sinks, budget, every
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.inference_mode()
    def generate(self, prompt: list[int], count: int, due: int) -> list[int]:
        tokens, computed = list(prompt), 0
        while len(tokens) < len(prompt) + count:
            stop = min(len(tokens), due)
            logits = self.forward(tokens[computed:stop])
            computed = stop
            if computed == len(tokens):
                tokens.append(int(logits.argmax()))
            if computed == due:
                self.drop()
                due += self.every
        return tokens[len(prompt) :]

    def drop(self) -> None:
        last = self.budget - self.sinks
        self.kept = [
            (
                torch.cat((keys[:, : self.sinks], keys[:, -last:]), 1),
                torch.cat((values[:, : self.sinks], values[:, -last:]), 1),
            )
            for keys, values in self.kept
        ]

    def forward(self, tokens: list[int]) -> torch.Tensor:
        hidden = self.network.model.embed_tokens(torch.tensor(tokens))
        before, self.kept = self.kept, []
        for index, layer in enumerate(self.network.model.layers):
            normed, attention = layer.input_layernorm(hidden), layer.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            query, key, value = (each(normed).unflatten(-1, (-1, 16)).transpose(0, 1) for each in projections)
            if before:
                key, value = torch.cat((before[index][0], key), 1), torch.cat((before[index][1], value), 1)
            self.kept.append((key, value))
            hidden = hidden + attention.o_proj(self.attend(query, key, value))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.network.lm_head(self.network.model.norm(hidden))[-1]

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        length, rows = key.shape[1], query.shape[1]
        query, key = self.rotated(query, torch.arange(length - rows, length)), self.rotated(key, torch.arange(length))
        scores = query @ key.repeat_interleave(2, 0).transpose(1, 2) / 4
        scores = scores.masked_fill(torch.ones(rows, length).triu(length - rows + 1).bool(), float("-inf"))
        return (scores.softmax(-1) @ value.repeat_interleave(2, 0)).transpose(0, 1).flatten(1)

    def rotated(self, vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(positions.float(), self.network.model.rotary_emb.inv_freq)
        first, second = vectors.chunk(2, dim=-1)
        return torch.cat(
            (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), dim=-1
        )


def test_tokens_are_those_of_the_paper(network: LlamaForCausalLM, model: Model) -> None:
    """From the end of the first page that the prompt does not fill on: pages are left out whole."""
    expected = PaperCache(network, PAGE, 64, 32).generate(PROMPT, 120, due=160)
    for options in ({}, {"max_num_batched_tokens": 37, "max_num_seqs": 8}):
        with make_llm(model, **options) as llm:
            assert tokens_of(llm, PROMPT, 120, kv_compression=STREAMING) == expected
            assert tokens_of(llm, PROMPT, 120, kv_compression=STREAMING) == expected, "from what is held"
            assert tokens_of(llm, PROMPT, 120) != expected


def test_sinks_must_be_turned(network: LlamaForCausalLM, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = PaperCache(network, PAGE, 64, 32).generate(PROMPT, 120, due=160)
    monkeypatch.setattr("pagoda.engine.compression.turn_keys", lambda *_: None)
    with make_llm(model) as llm:
        assert tokens_of(llm, PROMPT, 120, kv_compression=STREAMING) != expected


def test_a_prompt_longer_than_the_context(network: LlamaForCausalLM, model: Model) -> None:
    """It is computed as it is until the context is full."""
    expected = PaperCache(network, PAGE, 64, 32).generate(LONG, 60, due=CONTEXT)
    with make_llm(model) as llm:
        assert llm.engine.max_model_len == CONTEXT
        assert tokens_of(llm, LONG, 60, kv_compression=STREAMING) == expected
        with pytest.raises(PromptTooLongError):
            tokens_of(llm, LONG, 100)


def test_a_context_that_is_full(network: LlamaForCausalLM, model: Model) -> None:
    """It goes on without the older half, or as if it had been compressed from then on."""
    context = 192
    truncated = PaperCache(network, 0, context // 2, context // 2)
    streamed = PaperCache(network, PAGE, 64, 64)
    for action, cache in (("truncate_oldest", truncated), ("streaming:tokens=64", streamed)):
        expected = cache.generate(PROMPT, context, due=context)
        with make_llm(model, max_model_len=context, context_full=action) as llm:
            assert tokens_of(llm, PROMPT, context) == expected
            assert tokens_of(llm, PROMPT, context, context_full="stop") == expected[: context - len(PROMPT)]
        with make_llm(model, max_model_len=context) as llm:
            assert tokens_of(llm, PROMPT, context, context_full=action) == expected


def test_memory_stays_what_it_is(model: Model) -> None:
    """Five times the pool, while others come and go: the pages that are in use never become more."""
    page_nbytes = make_engine(model).memory.geometries[0].page_nbytes
    engine = make_engine(model, kv_cache_memory_bytes=12 * page_nbytes)
    request = new_request("endless", PROMPT, SamplingParams(max_tokens=5 * 12 * PAGE, kv_compression=STREAMING))
    engine.add(request)
    most, steps = 0, 0
    while engine.has_work:
        if steps % 100 == 0:
            engine.add(new_request(f"other-{steps}", PROMPT[:40], SamplingParams(max_tokens=8)))
        engine.step()
        steps += 1
        if len(request.sequences[0].tokens) > 200 and len(engine._scheduler.running) == 1:
            [counts] = engine.inspector.stats().groups
            most = max(most, counts.open + counts.in_use)
        engine.inspector.check_integrity()
    assert request.sequences[0].num_output_tokens == 5 * 12 * PAGE
    assert most <= (64 + 32) // PAGE


def test_windows_beside_stay_as_they_are() -> None:
    model = windowed_model("float32")
    with make_llm(model) as llm:
        cold = tokens_of(llm, PROMPT, 100, kv_compression=STREAMING)
        assert tokens_of(llm, PROMPT, 100, kv_compression=STREAMING) == cold
        assert tokens_of(llm, PROMPT, 100) != cold


def test_what_cannot_be_is_refused(model: Model) -> None:
    with pytest.raises(
        ConfigError, match=r"would hold up to 576 tokens, in pages of 16, and sequences have at most 512"
    ):
        make_llm(model, kv_compression="streaming:tokens=500")
    with pytest.raises(ConfigError, match="leave out one of the two"):
        make_llm(model, kv_compression=STREAMING, context_full="truncate_oldest")
    with pytest.raises(ConfigError, match="give stop, truncate_oldest, or streaming"):
        make_llm(model, context_full="snapkv:tokens=64")
    with pytest.raises(ConfigError, match="every=1 or more"):
        make_llm(model, kv_compression="streaming:tokens=64,every=0")
    engine = make_engine(model)
    for asked, said in (
        ({"kv_compression": STREAMING, "context_full": "truncate_oldest"}, "leave out one"),
        ({"context_full": "nothing"}, "context_full is 'nothing'"),
        ({"context_full": f"{STREAMING},after=10"}, "leave out after"),
        ({"context_full": STREAMING, "prompt_logprobs": 0}, "context_full does not go with prompt_logprobs"),
    ):
        with pytest.raises(InvalidSamplingError, match=said):
            engine.add(new_request("refused", PROMPT, SamplingParams(**asked)))
    learned = model_from_config(
        GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None),
        dtype="float32",
    )
    with pytest.raises(ConfigError, match="not known how 2 of 2 layers put positions into keys"):
        make_llm(learned, kv_compression=STREAMING)
    with make_llm(learned) as llm, pytest.raises(InvalidSamplingError, match="not known how 2 of 2"):
        tokens_of(llm, PROMPT, 4, kv_compression=STREAMING)
