"""Sequences whose layers and heads keep other numbers of tokens, against transformers' own cache behind masks."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool1d, pad
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from engine.test_compression import NEW_TOKENS, check_bits, check_sent_back, page_nbytes, params, running, tokens_of
from engine.tiny import CONTEXT, PAGE_TOKENS, VOCABULARY, make_engine, make_llm, windowed_model
from pagoda.engine.request import new_request
from pagoda.errors import ConfigError, InvalidSamplingError
from pagoda.formats.page import PageGeometry
from pagoda.models.loader import Model

LAYERS, KV_HEADS, GROUP, WIDTH = 4, 3, 2, 16
PROMPT = random.Random(0).sample(range(VOCABULARY), k=180)
ADAPTIVE = "snapkv:tokens=60,window=8,kernel=3,head_floor=0.2"
PYRAMID = "pyramidkv:tokens=60,window=8,kernel=3"
DENSE = (
    ADAPTIVE,
    f"{ADAPTIVE},critical=0.5",
    f"{ADAPTIVE},after=150",
    "snapkv:share=0.4,window=8,kernel=3,head_floor=0,after=150",
    "snapkv:tokens=80,window=20,kernel=3,head_floor=0.5",
    "knorm:tokens=48,window=2,head_floor=0.2",
    "tova:tokens=48,every=0,head_floor=0.2",
    "h2o:tokens=96,every=0,recent=0.1,head_floor=0.1",
    PYRAMID,
    f"{PYRAMID},head_floor=0.2",
    f"{PYRAMID},beta=4,critical=0.5,head_floor=0,after=150",
    "pyramidkv:tokens=90,window=8,kernel=3",  # the first layer keeps all
    "pyramidkv:tokens=128,window=8,kernel=3,head_floor=0.2",  # a prompt of less than twice the budget
)
UNEVEN = (ADAPTIVE, f"{PYRAMID},head_floor=0.2", "knorm:tokens=48,head_floor=0.1", "random:tokens=48,head_floor=0")


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=KV_HEADS * GROUP,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    network = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    for layer in network.model.layers:  # heads that attend to much, and to little
        layer.self_attn.q_proj.weight.data.view(KV_HEADS, -1).mul_(torch.tensor([[0.3], [1.0], [3.0]]))
        layer.self_attn.k_proj.weight.data.view(KV_HEADS, -1).mul_(torch.tensor([[1.1], [1.0], [0.9]]))
    return network


@pytest.fixture(scope="module")
def model(network: LlamaForCausalLM) -> Model:
    return Model.from_transformers(network)


class MaskedCache:
    """A dense cache that keeps all; once compressed, each layer and head sees what it would have kept."""

    def __init__(self, network: LlamaForCausalLM, text: str) -> None:
        self.network = network
        self.name, _, options = text.partition(":")
        self.options = dict(each.split("=") for each in options.split(","))
        self.window = int(self.options.get("window", {"knorm": 1}.get(self.name, 0)))
        self.cache = DynamicCache()
        self.queries: list[torch.Tensor] = [torch.empty(0)] * LAYERS
        self.seen: list[torch.Tensor] = []  # by layer, bool [KV heads, tokens]

    @torch.inference_mode()
    def generate(self, prompt: list[int], count: int) -> list[int]:
        due = int(self.options.get("after", len(prompt)))
        logits, tokens = self.forward(prompt[:due], 0), list(prompt)
        pages = -(-int(self.options.get("tokens") or float(self.options["share"]) * due) // PAGE_TOKENS)
        counts = self.pages_of_layers(pages, due) if self.name == "pyramidkv" else [pages] * LAYERS
        self.seen = [self.kept(layer, own) for layer, own in enumerate(counts)]
        if due < len(prompt):
            logits = self.forward(prompt[due:], due)
        for _ in range(count):
            tokens.append(int(logits.argmax()))
            logits = self.forward(tokens[-1:], len(tokens) - 1)
        return tokens[len(prompt) :]

    def forward(self, tokens: list[int], start: int) -> torch.Tensor:
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                lambda module, inputs, named: (inputs, self.masked(module, start, **named)), with_kwargs=True
            )
            for layer in self.network.model.layers
        ]
        positions = torch.arange(start, start + len(tokens))[None]
        output = self.network(torch.tensor([tokens]), position_ids=positions, past_key_values=self.cache)
        for hook in hooks:
            hook.remove()
        return output.logits[0, -1]

    def masked(self, module: Any, start: int, hidden_states: torch.Tensor, **named: Any) -> dict[str, Any]:
        count, number = hidden_states.shape[1], module.layer_idx
        visible = torch.ones(KV_HEADS * GROUP, count, start + count).tril(start).bool()
        if self.seen:
            seen = self.seen[number].repeat_interleave(GROUP, dim=0)
            visible[:, :, : seen.shape[1]] &= seen[:, None]
        else:
            query = module.q_proj(hidden_states)[0].unflatten(-1, (-1, WIDTH)).transpose(0, 1)
            cosines, sines = (each[0] for each in named["position_embeddings"])
            first, second = query.chunk(2, dim=-1)
            self.queries[number] = query * cosines + torch.cat((-second, first), dim=-1) * sines
        mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[None]
        return {**named, "hidden_states": hidden_states, "attention_mask": mask}

    def pages_of_layers(self, pages: int, length: int) -> list[int]:
        mean, whole = pages * PAGE_TOKENS - self.window, length // PAGE_TOKENS
        if length < 2 * mean:
            return [pages] * LAYERS
        least = mean / float(self.options.get("beta", 20))
        most = 2 * mean - least
        if most > whole * PAGE_TOKENS - self.window:
            most = whole * PAGE_TOKENS - self.window
            least = 2 * mean - most
        wanted = torch.linspace(most, least, LAYERS, dtype=torch.double) + self.window
        return nearest(wanted.tolist(), pages * LAYERS, self.window + 1, whole)

    def scores(self, number: int) -> torch.Tensor:
        """Of all tokens before the window: [KV heads, tokens]."""
        keys, queries = self.cache.layers[number].keys[0], self.queries[number]
        if self.name == "knorm":
            return -keys.norm(dim=-1)
        length = keys.shape[1]
        logits = queries @ keys.repeat_interleave(GROUP, dim=0).mT / WIDTH**0.5
        weights = logits.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf")).softmax(-1)
        if self.name == "tova":
            return weights[:, -1].mean(dim=0).expand(KV_HEADS, -1)
        rows = slice(None) if self.name == "h2o" else slice(-self.window, None)
        sums = weights[:, rows].sum(dim=1).view(KV_HEADS, GROUP, length)
        if self.name == "h2o":
            return sums.sum(dim=1)
        return avg_pool1d(sums[..., : length - self.window] / self.window, 3, stride=1, padding=1).mean(dim=1)

    def kept(self, number: int, pages: int) -> torch.Tensor:
        values = self.cache.layers[number].values[0]
        length = values.shape[1]
        recent = int(float(self.options["recent"]) * pages * PAGE_TOKENS) if self.name == "h2o" else self.window
        scores = self.scores(number)[:, : length - recent]
        seen = torch.zeros(KV_HEADS, length, dtype=torch.bool)
        seen[:, length - recent :] = True
        for head, count in enumerate(self.counts(scores, pages, recent, length)):
            ranked = scores[head].argsort(descending=True, stable=True)
            if "critical" in self.options:
                sure = ranked[: count // 2]
                norms = self.norms(number, head, values)[: len(ranked)]
                ranked = ((scores[head] + 1e-4) * norms).index_fill(0, sure, 1e9).argsort(descending=True)
            seen[head, ranked[:count]] = True
        return seen

    def counts(self, scores: torch.Tensor, pages: int, recent: int, length: int) -> list[int]:
        """How many tokens each head keeps beside the recent ones."""
        size = pages * PAGE_TOKENS
        if "head_floor" not in self.options:
            return [size - recent] * KV_HEADS
        safe, most = int(float(self.options["head_floor"]) * size), length // PAGE_TOKENS
        own = [scores[head].sort(descending=True).values.tolist() for head in range(KV_HEADS)]
        wanted = [max(safe - recent, 0)] * KV_HEADS
        while sum(wanted) < (size - recent) * KV_HEADS:
            heads = [head for head in range(KV_HEADS) if wanted[head] + recent < most * PAGE_TOKENS]
            # Of equal heads the one that has fewer.
            best = max(heads, key=lambda head: (own[head][wanted[head]], -wanted[head]))
            wanted[best] += 1
        least = max(recent, safe, 1)
        given = nearest([each + recent for each in wanted], pages * KV_HEADS, least, most)
        return [each * PAGE_TOKENS - recent for each in given]

    def norms(self, number: int, head: int, values: torch.Tensor) -> torch.Tensor:
        """Of what each value of a KV head is in the output, over the query heads that read it."""
        projection, found = self.network.model.layers[number].self_attn.o_proj, []
        for query_head in range(GROUP * head, GROUP * head + GROUP):
            before, behind = WIDTH * query_head, WIDTH * (KV_HEADS * GROUP - query_head - 1)
            found.append(projection(pad(values[head], (before, behind))).abs().sum(dim=-1))
        return torch.stack(found).mean(dim=0)


def nearest(wanted: list[float], total: int, least_tokens: int, most: int) -> list[int]:
    """Of all ways to give `total` pages the one that is nearest to what is wanted; of equal ones, more to the first."""
    least = -(-least_tokens // PAGE_TOKENS)
    ways = (each for each in product(range(most, least - 1, -1), repeat=len(wanted)) if sum(each) == total)
    targets = torch.tensor(wanted, dtype=torch.double)
    return list(min(ways, key=lambda way: float((torch.tensor(way) * PAGE_TOKENS - targets).square().sum())))


@pytest.mark.parametrize("text", DENSE)
def test_tokens_are_those_of_a_dense_cache_behind_masks(network: LlamaForCausalLM, model: Model, text: str) -> None:
    masked = MaskedCache(network, text)
    expected = masked.generate(PROMPT, NEW_TOKENS)
    counts = {int(count) for seen in masked.seen for count in seen.sum(dim=-1)}
    assert (len(counts) > 1) == (not text.startswith("tova")), "as it is meant to be"
    with make_llm(model) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected]
        assert tokens_of(llm, [PROMPT], None) != [expected]
    with make_llm(model, max_num_batched_tokens=37, max_num_seqs=8) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected], "however a prompt is cut"
        assert tokens_of(llm, [PROMPT, PROMPT[:130], PROMPT], text)[::2] == [expected] * 2, "warm, beside others"


def test_forks_batches_and_formats_change_nothing(model: Model) -> None:
    prompts = [PROMPT[:count] for count in (50, 90, 131, 180)]
    for format in ("bf16", "int4_rotated", "k8v4"):
        with make_llm(model, kv_cache_dtype=format, kv_cache_calibration="none") as llm:
            for policy in UNEVEN[:2]:
                llm.reset_prefix_cache()
                alone = [tokens_of(llm, [prompt], policy)[0] for prompt in prompts]
                llm.reset_prefix_cache()
                assert tokens_of(llm, prompts, policy) == alone, "cold and together"
                assert tokens_of(llm, prompts, policy) == alone, "warm"
                assert tokens_of(llm, prompts[-1:], policy, n=3) == alone[-1:] * 3


def test_deterministic_is_to_the_bit(model: Model) -> None:
    check_bits(model, [PROMPT[:count] for count in (90, 130, 180)], UNEVEN)


@pytest.mark.parametrize("policy", UNEVEN)
def test_a_budget_beyond_the_sequence_changes_nothing(model: Model, policy: str) -> None:
    with make_llm(model) as llm:
        exact = tokens_of(llm, [PROMPT], None)
        for budget in ("60", "48"):
            policy = policy.replace(f"tokens={budget}", f"tokens={len(PROMPT) + NEW_TOKENS}")
        assert tokens_of(llm, [PROMPT], policy) == exact


def test_heads_that_keep_the_same_are_an_even_budget(model: Model) -> None:
    """Budgets are of whole pages; with a floor of all heads keep as many, and `tova` scores all heads alike."""
    with make_llm(model) as llm:
        for even, uneven in (
            ("snapkv:tokens=64,window=8", "snapkv:tokens=64,window=8,head_floor=1"),
            ("snapkv:tokens=64,window=8,critical=0.5", "snapkv:tokens=50,window=8,critical=0.5,head_floor=1"),
            ("tova:tokens=48,every=0", "tova:tokens=48,every=0,head_floor=0"),
        ):
            assert tokens_of(llm, [PROMPT], uneven) == tokens_of(llm, [PROMPT], even)


@pytest.mark.parametrize("policy", ["snapkv:tokens=80,window=8,head_floor=0.2", "pyramidkv:tokens=80,window=8"])
def test_who_is_sent_back_goes_on_with_the_same_tokens(model: Model, policy: str) -> None:
    check_sent_back(model, policy)


@pytest.mark.parametrize("policy", ["snapkv:share=0.25,window=8,head_floor=0", "pyramidkv:share=0.25,window=8"])
def test_memory_is_given_back(model: Model, policy: str) -> None:
    """As much as with an even budget: what one head keeps more of, others keep less."""
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=320) for seed in range(6)]
    engine = make_engine(model, enable_prefix_caching=False)
    _, exact = running(engine, prompts, None)
    _, quarter = running(engine, prompts, policy)
    assert exact >= 6 * 20
    assert quarter <= 0.27 * exact + 6 * 2  # a page that is begun, and the new tokens' page
    engine = make_engine(model, kv_cache_memory_bytes=64 * page_nbytes(model))
    few, _ = running(engine, prompts, None)
    many, _ = running(engine, prompts, policy)
    assert many >= 2 * few


def test_what_is_left_out_is_told_as_a_mean_and_exact_pages_stay_with_everybody_else(model: Model) -> None:
    with make_llm(model) as llm:
        exact = tokens_of(llm, [PROMPT], None)
        for policy in UNEVEN[:2]:
            [output] = llm.generate([PROMPT], params(policy))
            assert output.num_cached_tokens >= len(PROMPT) - 8, "all but those whose queries decide"
            assert output.outputs[0].num_omitted_tokens == len(PROMPT) - 64, "of whole pages"
            [again] = llm.generate([[*PROMPT, *output.outputs[0].token_ids]], params(None))
            assert again.num_cached_tokens <= len(PROMPT) + 4, "what follows is as it would be without"
        assert tokens_of(llm, [PROMPT], None) == exact


def test_windows_beside_are_left() -> None:
    with make_llm(windowed_model("bfloat16")) as llm:
        exact = tokens_of(llm, [PROMPT], None)
        for policy in UNEVEN:
            cold = tokens_of(llm, [PROMPT], policy)
            assert tokens_of(llm, [PROMPT], policy) == cold
            assert tokens_of(llm, [PROMPT], None) == exact


def test_a_cancelled_sequence_leaves_nothing_behind(model: Model) -> None:
    engine = make_engine(model)
    for number, policy in enumerate(UNEVEN):
        engine.add(new_request(str(number), PROMPT, params(policy, n=2)))
    for _ in range(8):
        engine.step()
    for number in range(len(UNEVEN)):
        engine.cancel(str(number))
        engine.inspector.check_integrity()
    [counts] = engine.inspector.stats().groups
    assert counts.free + counts.idle == counts.total


def test_what_cannot_be_is_refused_with_what_can(model: Model) -> None:
    with make_llm(model) as llm:
        for policy, said in (
            ("tova:tokens=48,head_floor=0.2", "give every=0"),
            ("pyramidkv:tokens=48,every=16", "give every=0"),
            ("snapkv:tokens=48,head_floor=2", "head_floor=2; give 0 to 1"),
            ("pyramidkv:tokens=48,beta=0.5", "beta=0.5; give at least 1"),
            ("pyramidkv:tokens=48,kernel=2", "pyramidkv needs a window"),
        ):
            with pytest.raises(InvalidSamplingError, match=said):
                llm.generate([PROMPT], params(policy))


def test_layers_that_are_not_alike_share_no_pages(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at start-up, or to the request; nothing that is even is refused."""
    monkeypatch.setattr(PageGeometry, "layer_nbytes", None)
    with pytest.raises(ConfigError, match=r"snapkv would give .* choose one that gives all the same"):
        make_llm(model, kv_compression=ADAPTIVE)
    with make_llm(model) as llm:
        with pytest.raises(InvalidSamplingError, match="pyramidkv would give"):
            llm.generate([PROMPT], params(PYRAMID))
        assert tokens_of(llm, [PROMPT], "snapkv:tokens=64,window=8") != tokens_of(llm, [PROMPT], None)
