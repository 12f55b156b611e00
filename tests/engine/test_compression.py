"""Compressed sequences against transformers' own cache with the same tokens cut out of it, and beside all else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, MptConfig

from engine.tiny import VOCABULARY, make_engine, make_llm, tiny_config, windowed_model
from oracle.families import build_tiny
from pagoda import LLM, SamplingParams
from pagoda.cache.leases import Breakpoint
from pagoda.cache.prefix.keys import key_tokens
from pagoda.engine.engine import Engine
from pagoda.engine.request import FinishReason, new_request
from pagoda.errors import ConfigError, InvalidSamplingError
from pagoda.models.loader import Model, model_from_config
from pagoda.registry import names

NEW_TOKENS = 24
PROMPT = random.Random(0).sample(range(VOCABULARY), k=150)
DENSE = {
    "snapkv:tokens=60,window=8,kernel=3": (60, 0),
    "tova:tokens=40,every=1": (40, 1),
    "tova:tokens=40,every=5": (40, 5),
    "morphkv:tokens=48,window=8,every=8": (48, 8),
    "morphkv:tokens=48,window=8,every=3": (48, 3),
    "morphkv:tokens=48,window=8,every=3,fuse=max": (48, 3),
    "knorm:tokens=30,window=2": (30, 0),
    "snapkv:tokens=60,window=8,kernel=3,after=110": (60, 0),
    "snapkv:share=0.25,window=8,kernel=3,after=112": (28, 0),
    "expected_attention:tokens=50,future=40": (50, 0),
    "expected_attention:tokens=50,future=40,every=9": (50, 9),
    "h2o:tokens=40,every=1": (40, 1),
    "h2o:tokens=41,every=6": (41, 6),
    "h2o:tokens=41,every=6,after=110": (41, 6),
    "expected_attention:tokens=50,future=40,after=110": (50, 0),
    "snapkv:tokens=60,window=8,kernel=3,critical=0.5": (60, 0),
    "tova:tokens=40,every=5,critical=0.5": (40, 5),
}


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(tiny_config(), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model(network: LlamaForCausalLM) -> Model:
    return Model.from_transformers(network)


def params(compression: str | None, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": NEW_TOKENS, "kv_compression": compression, **more})


def tokens_of(llm: LLM, prompts: list[list[int]], compression: str | None, **more: Any) -> list[list[int]]:
    outputs = llm.generate(prompts, params(compression, **more))
    return [sample.token_ids for output in outputs for sample in output.outputs]


class DenseCache:
    """A dense cache of one sequence, of which each layer and head keeps what `choose` says, in plain torch."""

    def __init__(self, network: LlamaForCausalLM, text: str, budget: int, every: int) -> None:
        self.network, self.text, self.budget, self.every = network, text, budget, every
        self.options = dict(each.split("=") for each in text.partition(":")[2].split(","))
        self.cache = DynamicCache()
        self.queries: list[list[torch.Tensor]] = []  # by layer, a tensor for each token
        self.unrotated: list[torch.Tensor] = [torch.zeros(4, 0, 16)] * 2
        self.sums = [torch.zeros(2, 0)] * 2

    @torch.inference_mode()
    def generate(self, prompt: list[int], count: int) -> list[int]:
        tokens, due = list(prompt), int(self.options.get("after", len(prompt)))
        logits, start = self.forward(tokens[:due], 0), due
        while start < len(prompt):
            self.compress()
            due = start + self.every if self.every else len(prompt) + count
            stop = min(due, len(prompt))
            logits, start = self.forward(tokens[start:stop], start), stop
        for _ in range(count):
            if len(tokens) == due and self.cache.get_seq_length() > self.budget:
                self.compress()
                due += self.every
            tokens.append(int(logits.argmax()))
            if len(tokens) < len(prompt) + count:
                logits = self.forward(tokens[-1:], len(tokens) - 1)
        return tokens[len(prompt) :]

    def forward(self, tokens: list[int], start: int) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hooks = [
            layer.self_attn.register_forward_pre_hook(
                lambda module, _, inputs: seen.append(self.rotated_queries(module, **inputs)), with_kwargs=True
            )
            for layer in self.network.model.layers
        ]
        positions = torch.arange(start, start + len(tokens))[None]
        output = self.network(torch.tensor([tokens]), position_ids=positions, past_key_values=self.cache)
        for hook in hooks:
            hook.remove()
        for number, queries in enumerate(seen):
            self.note(number, queries)
        self.queries = [
            [*before, *new.unbind(1)] for before, new in zip(self.queries or [[]] * len(seen), seen, strict=True)
        ]
        return output.logits[0, -1]

    def note(self, number: int, queries: torch.Tensor) -> None:
        """What new queries attended to, added up for each token that is left."""
        keys = self.cache.layers[number].keys[0].repeat_interleave(2, dim=0)
        logits = queries @ keys.mT / 4
        rows, length = logits.shape[1:]
        future = torch.ones(rows, length).triu(length - rows + 1).bool()
        weights = logits.masked_fill(future, float("-inf")).softmax(-1).sum(dim=1).view(2, 2, length).sum(dim=1)
        self.sums[number] = weights + torch.nn.functional.pad(self.sums[number], (0, rows))

    def expected(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Scores of the tokens behind four sinks by the distribution of queries before rotation."""
        queries, length = self.unrotated[number][:, 4:], self.unrotated[number].shape[1]
        ahead = torch.arange(length, length + 40)[None]
        cosines, sines = (each[0].mean(dim=0) for each in self.network.model.rotary_emb(queries, ahead))
        turn = torch.diag(cosines)
        for channel in range(8):
            turn[channel, channel + 8], turn[channel + 8, channel] = -sines[channel], sines[channel]
        scores = []
        for head, rows in enumerate(queries.double()):
            mean, spread = turn.double() @ rows.mean(dim=0), turn.double() @ rows.T.cov(correction=0) @ turn.T.double()
            own = keys[head // 2, 4:].double()
            scores.append((own @ mean / 4 + ((own @ spread) * own).sum(dim=-1) / 32).softmax(-1))
        return torch.stack(scores).view(2, 2, -1).mean(dim=1) * values[:, 4:].norm(dim=-1)

    def rotated_queries(
        self, module: Any, hidden_states: torch.Tensor, position_embeddings: Any, **_: Any
    ) -> torch.Tensor:
        """[heads, tokens, width]"""
        query = module.q_proj(hidden_states)[0].unflatten(-1, (-1, module.head_dim)).transpose(0, 1)
        self.unrotated[module.layer_idx] = torch.cat((self.unrotated[module.layer_idx], query), dim=1)
        cosines, sines = (each[0] for each in position_embeddings)
        first, second = query.chunk(2, dim=-1)
        return query * cosines + torch.cat((-second, first), dim=-1) * sines

    def compress(self) -> None:
        for number, (layer, queries) in enumerate(zip(self.cache.layers, self.queries, strict=True)):
            self.norms = self.output_norms(self.network.model.layers[number].self_attn.o_proj, layer.values[0])
            chosen = self.choose(number, layer.keys[0], layer.values[0], torch.stack(queries, dim=1))
            self.sums[number] = self.sums[number].gather(1, chosen)
            kept = chosen[..., None].expand(-1, -1, 16)
            layer.keys, layer.values = (each[0].gather(1, kept)[None] for each in (layer.keys, layer.values))

    @staticmethod
    def output_norms(projection: Any, values: torch.Tensor) -> torch.Tensor:
        """Of each value [KV heads, tokens, width] by itself, over the query heads that read it."""
        norms = torch.zeros(4, values.shape[1])
        for head in range(4):
            alone = torch.zeros(values.shape[1], 64)
            alone[:, 16 * head : 16 * head + 16] = values[head // 2]
            norms[head] = projection(alone).abs().sum(dim=-1)
        return norms.view(2, 2, -1).mean(dim=1)

    def choose(self, number: int, keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Which tokens [KV heads, budget] of `keys` [KV heads, tokens, width] are kept."""
        name, options = self.text.partition(":")[0], self.options
        window, length = int(options.get("window", 0)), keys.shape[1]
        if name == "knorm":
            return self.best(-keys.norm(dim=-1), length, window)
        if name == "h2o":
            return self.best(self.sums[number], length, self.budget // 2)
        if name == "expected_attention":
            sinks = torch.full((2, 4), 9.0)
            return self.best(torch.cat((sinks, self.expected(number, keys, values)), dim=1), length, 0)
        rows = 1 if name == "tova" else window
        logits = torch.stack([queries[head, -rows:] @ keys[head // 2].T / 4 for head in range(len(queries))])
        future = torch.ones(rows, length).triu(length - rows + 1).bool()
        logits = logits.masked_fill(future, float("-inf"))
        if name == "tova":
            return self.best(logits.softmax(-1).mean(dim=0).expand(len(keys), -1), length, 0)
        if name == "snapkv":
            seen = logits.softmax(-1).sum(dim=1)[:, : length - window]
            pooled = torch.stack([torch.nn.functional.pad(seen, (1, 1))[:, i : i + seen.shape[1]] for i in range(3)])
            return self.best((pooled.sum(dim=0) / 3).view(len(keys), 2, -1).mean(dim=1), length, window)
        old = logits.view(len(keys), 2, rows, length).sum(dim=1)[..., : length - window].softmax(-1)
        return self.best(old.sum(dim=1) if options.get("fuse", "sum") == "sum" else old.amax(dim=1), length, window)

    def best(self, scores: torch.Tensor, length: int, window: int) -> torch.Tensor:
        scores, count = scores[:, : length - window], self.budget - window
        best = scores.topk(count).indices
        if "critical=0.5" in self.text:
            for head, row in enumerate(scores):
                first = best[head, : count // 2]
                rest = ((row + 1e-4) * self.norms[head, : len(row)]).index_fill(0, first, -1)
                best[head] = torch.cat((first, rest.topk(count - count // 2).indices))
        best = best.sort(dim=-1).values
        return torch.cat((best, torch.arange(length - window, length).expand(len(best), -1)), dim=-1)


@pytest.mark.parametrize("text", DENSE)
def test_tokens_are_those_of_a_dense_cache_that_is_cut(network: LlamaForCausalLM, model: Model, text: str) -> None:
    expected = DenseCache(network, text, *DENSE[text]).generate(PROMPT, NEW_TOKENS)
    with make_llm(model) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected]
        assert tokens_of(llm, [PROMPT], None) != [expected]
    with make_llm(model, max_num_batched_tokens=37, max_num_seqs=8) as llm:
        assert tokens_of(llm, [PROMPT], text) == [expected], "however a prompt is cut"
        assert tokens_of(llm, [PROMPT], text) == [expected], "and whatever is held of it"


FORMATS = ("bf16", "fp16", "int8", "fp8_e4m3", "int4_plain", "int4_rotated", "k8v4")
POLICIES = (
    "snapkv:tokens=40,window=8",
    "pyramidkv:tokens=40,window=8,head_floor=0.2",
    "tova:tokens=40,every=3,critical=0.5",
    "morphkv:tokens=40,window=8,every=4",
    "expected_attention:tokens=40",
    "h2o:tokens=40,every=3",
    "knorm:tokens=40",
    "random:tokens=40",
    "kvzip:tokens=40,chunk=48",
    "streaming:tokens=40,every=16",
)


def test_every_policy_is_tried_here() -> None:
    assert {policy.partition(":")[0] for policy in POLICIES} == set(names("compression"))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_budget_beyond_the_sequence_changes_nothing(model: Model, policy: str) -> None:
    with make_llm(model) as llm:
        exact = tokens_of(llm, [PROMPT], None)
        assert tokens_of(llm, [PROMPT], policy.replace("40", str(len(PROMPT) + NEW_TOKENS))) == exact


@pytest.mark.parametrize("format", FORMATS)
def test_cold_warm_and_batched_are_the_same_in_every_format(model: Model, format: str) -> None:
    prompts = [PROMPT[:count] for count in (50, 90, 131, 150)]
    # Every other policy with a format, and those between with the next.
    policies = (*POLICIES[:5], POLICIES[-1])[FORMATS.index(format) % 2 :: 2]
    with make_llm(model, kv_cache_dtype=format, kv_cache_calibration="none") as llm:
        for policy in policies:
            llm.reset_prefix_cache()
            alone = [tokens_of(llm, [prompt], policy)[0] for prompt in prompts]
            llm.reset_prefix_cache()
            assert tokens_of(llm, prompts, policy) == alone, "cold and together"
            assert tokens_of(llm, prompts, policy) == alone, "warm"


def test_deterministic_is_to_the_bit(model: Model) -> None:
    check_bits(model, [PROMPT[:count] for count in (70, 110, 150)], POLICIES)


def check_bits(model: Model, prompts: list[list[int]], policies: Sequence[str]) -> None:
    """However a prompt is cut, batched or cached: the same scores keep the same tokens."""

    def logprobs(llm: LLM, prompts: list[list[int]], policy: str) -> list[list[float]]:
        outputs = llm.generate(prompts, params(policy, logprobs=0))
        return [[each.logprob for each in output.outputs[0].logprobs] for output in outputs]

    for policy in policies:
        with make_llm(model, deterministic=True) as llm:
            alone = [logprobs(llm, [prompt], policy)[0] for prompt in prompts]
            assert logprobs(llm, prompts, policy) == alone, "warm and together"
        with make_llm(model, deterministic=True, max_num_batched_tokens=37, max_num_seqs=8) as llm:
            assert logprobs(llm, prompts, policy) == alone, "in chunks"


@pytest.mark.parametrize("policy", ["expected_attention:tokens=40", "h2o:tokens=40"])
def test_who_looks_at_all_queries_takes_no_hits_and_shares_what_it_computed(model: Model, policy: str) -> None:
    with make_llm(model) as llm:
        tokens_of(llm, [PROMPT], None)
        [first], [second] = (llm.generate([PROMPT], params(policy)) for _ in range(2))
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 0)
        assert first.outputs[0].token_ids == second.outputs[0].token_ids
        [counts] = llm.cache_stats().groups
        assert counts.idle <= -(-(len(PROMPT) + NEW_TOKENS) // 16), "the same pages each time"
        [after] = llm.generate([[*PROMPT, 1]], params(None))
        assert after.num_cached_tokens == len(PROMPT)


def test_a_miss_is_not_explained_by_what_nobody_could_have_hit(model: Model) -> None:
    """Only the tokens up to where it was compressed are remembered of a sequence."""
    with make_llm(model) as llm:
        [answer] = tokens_of(llm, [PROMPT], POLICIES[0])
        [looked] = llm.loop.call(llm.engine.lookups.all).result()
        assert list(key_tokens(looked.key)) == PROMPT
        assert answer


def test_exact_pages_stay_with_everybody_else(model: Model) -> None:
    """What is written after a prompt was compressed is nobody else's, and the prompt is as it was."""
    questions = [[*PROMPT, *random.Random(seed).choices(range(VOCABULARY), k=12)] for seed in range(16)]
    with make_llm(model, enable_prefix_caching=False) as llm:
        exact = tokens_of(llm, questions, None)
        compressed = [tokens_of(llm, [each], POLICIES[0])[0] for each in questions]
    with make_llm(model) as llm:
        tokens_of(llm, [PROMPT], None)
        outputs = llm.generate(questions, params(POLICIES[0]))
        assert [each.outputs[0].token_ids for each in outputs] == compressed
        assert all(each.num_cached_tokens == len(PROMPT) for each in outputs)
        assert all(each.outputs[0].num_omitted_tokens == len(PROMPT) + 12 - 40 for each in outputs)
        again = [[*question, *output] for question, output in zip(questions, compressed, strict=True)]
        hits = [each.num_cached_tokens for each in llm.generate(again, params(None))]
        assert hits == [len(each) for each in questions], "nothing that was written after them"
        assert tokens_of(llm, questions, None) == exact


def test_samples_of_one_prompt_are_what_each_would_be_alone(model: Model) -> None:
    with make_llm(model) as llm:
        for policy in POLICIES:
            [alone] = tokens_of(llm, [PROMPT], policy)
            assert tokens_of(llm, [PROMPT], policy, n=4) == [alone] * 4


@pytest.mark.parametrize(
    "policy",
    [
        "snapkv:tokens=90,window=8",
        "tova:tokens=90,every=40",
        "morphkv:tokens=90,window=50,every=40",
        "expected_attention:tokens=90",
        "h2o:tokens=90,every=40",
        "knorm:tokens=90",
        "streaming:tokens=96,every=48",
    ],
)
def test_who_is_sent_back_goes_on_with_the_same_tokens(model: Model, policy: str) -> None:
    check_sent_back(model, policy)


def check_sent_back(model: Model, policy: str) -> None:
    """Too few pages for all, so that some are computed and compressed again."""
    # No token twice: keys of the first layer would be equally long but for rounding.
    prompts = [random.Random(seed).sample(range(VOCABULARY), k=100 + 7 * seed) for seed in range(6)]
    with make_llm(model) as llm:
        alone = [tokens_of(llm, [each], policy, max_tokens=60)[0] for each in prompts]
    with make_llm(model, kv_cache_memory_bytes=16 * page_nbytes(model)) as llm:
        outputs = llm.generate(prompts, params(policy, max_tokens=60))
        assert [each.outputs[0].token_ids for each in outputs] == alone
        assert sum(each.metrics.num_preemptions for each in outputs) > 0
        [counts] = llm.cache_stats().groups
        assert counts.free + counts.idle == counts.total


def page_nbytes(model: Model) -> int:
    return make_engine(model).memory.geometries[0].page_nbytes


def running(engine: Engine, prompts: list[list[int]], policy: str | None) -> tuple[int, int]:
    """The most sequences that ran at once, and the pages in use when all of them had begun to answer."""
    for number, prompt in enumerate(prompts):
        engine.add(new_request(str(number), prompt, params(policy)))
    most, pages = 0, 0
    while engine.has_work:
        events = engine.step()
        most = max(most, len(engine._scheduler.running))
        if events and len(engine._scheduler.running) == len(prompts):
            [counts] = engine.inspector.stats().groups
            pages = counts.open + counts.in_use
        engine.inspector.check_integrity()
    return most, pages


def test_memory_is_given_back(model: Model) -> None:
    """A quarter of the tokens take a quarter of the pages, and a page; more sequences run in the same pool."""
    prompts = [random.Random(seed).choices(range(VOCABULARY), k=320) for seed in range(6)]
    engine = make_engine(model, enable_prefix_caching=False)
    _, exact = running(engine, prompts, None)
    _, quarter = running(engine, prompts, "snapkv:share=0.25,window=8")
    assert exact >= 6 * 20
    assert quarter <= 0.27 * exact + 6 * 2  # a page that is begun, and the new tokens' page
    engine = make_engine(model, kv_cache_memory_bytes=64 * page_nbytes(model))
    few, _ = running(engine, prompts, None)
    many, _ = running(engine, prompts, "snapkv:share=0.25,window=8")
    assert many >= 2 * few


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_beside_are_left_and_share_nothing_that_follows(dtype: str) -> None:
    model, followed = windowed_model(dtype), []
    with make_llm(model) as llm:
        exact = tokens_of(llm, [PROMPT], None)
        llm.reset_prefix_cache()
        for policy in POLICIES:
            cold = tokens_of(llm, [PROMPT], policy)
            assert tokens_of(llm, [PROMPT], policy) == cold
            assert tokens_of(llm, [PROMPT], None) == exact
            followed.append([*PROMPT, *cold[0]])
        again = tokens_of(llm, followed, None)
    with make_llm(model, enable_prefix_caching=False) as llm:
        assert again == tokens_of(llm, followed, None), "what follows was not taken from compressed sequences"


def test_a_cancelled_sequence_leaves_nothing_behind(model: Model) -> None:
    engine = make_engine(model)
    for number, policy in enumerate(POLICIES):
        engine.add(new_request(str(number), PROMPT, params(policy)))
    for _ in range(8):
        engine.step()
    for number in range(len(POLICIES)):
        engine.cancel(str(number))
        engine.inspector.check_integrity()
    [counts] = engine.inspector.stats().groups
    assert counts.free + counts.idle == counts.total


def test_leases_do_not_keep_a_sequence_waiting_for_ever(model: Model) -> None:
    """Beside what is leased there is no room for private pages, so the lease has to end."""
    engine = make_engine(model, kv_cache_memory_bytes=11 * page_nbytes(model))
    engine.add(new_request("leased", PROMPT, params(None, max_tokens=1), breakpoints=(Breakpoint(80, 60.0),)))
    while engine.has_work:
        engine.step()
    assert engine.inspector.stats().num_leases == 1
    request = new_request("compressed", PROMPT, params("snapkv:tokens=140,window=8"))
    engine.add(request)
    for _ in range(200):
        engine.step()
    assert request.sequences[0].finish_reason is FinishReason.LENGTH
    assert engine.inspector.stats().revoked_leases == 1


def test_what_is_asked_for_all_spares_who_needs_the_whole_prompt(model: Model) -> None:
    with make_llm(model, kv_compression=POLICIES[0]) as llm:
        assert tokens_of(llm, [PROMPT], None) == tokens_of(llm, [PROMPT], POLICIES[0])
        exact = tokens_of(llm, [PROMPT], "none")
        assert exact != tokens_of(llm, [PROMPT], None)
        assert tokens_of(llm, [PROMPT], None, prompt_logprobs=0) == exact


def test_what_cannot_be_is_refused_with_what_can(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"kv_compression is 'snapkv': snapkv needs a budget: give tokens=1024 or"):
        make_llm(model, kv_compression="snapkv")
    engine = make_engine(model)
    for asked, leases, said in (
        (params("nosuch:tokens=5"), (), r"kv_compression is 'nosuch:tokens=5': give none, or snapkv, "),
        (params(POLICIES[0], prompt_logprobs=1), (), "prompt_logprobs"),
        (params(POLICIES[0]), (Breakpoint(100, 60.0),), "leases"),
    ):
        with pytest.raises(InvalidSamplingError, match=said):
            engine.add(new_request("refused", PROMPT, asked, breakpoints=leases))
    assert not engine.has_work
    with pytest.raises(InvalidSamplingError, match="kv_compression"):
        params(3)  # type: ignore[arg-type]


def test_what_a_value_is_in_the_output_has_to_be_known() -> None:
    """Here two results of attention are mixed before anything takes them."""
    model = Model.from_transformers(build_tiny("diffllama"))
    with make_llm(model) as llm, pytest.raises(InvalidSamplingError, match="critical needs the layer"):
        llm.generate([[5] * 50], params("snapkv:tokens=40,window=8,critical=0.5"))


def test_how_queries_are_turned_has_to_be_known() -> None:
    """This model adds its positions to what it computes keys of."""
    model = Model.from_transformers(build_tiny("gpt2"))
    with make_llm(model) as llm, pytest.raises(InvalidSamplingError, match="not known how 2 of 2 layers"):
        llm.generate([[5] * 50], params("expected_attention:tokens=40"))
    with pytest.raises(ConfigError, match="not known how 2 of 2 layers"):
        make_llm(model, kv_compression="expected_attention:tokens=40")


def test_models_of_which_nothing_can_be_compressed() -> None:
    alibi = MptConfig(vocab_size=VOCABULARY, d_model=64, n_heads=4, n_layers=2, max_seq_len=512)
    model = model_from_config(alibi, dtype="float32", seed=0)
    with pytest.raises(ConfigError, match="positions"):
        make_llm(model, kv_compression=POLICIES[0])
    with make_llm(model) as llm, pytest.raises(InvalidSamplingError, match="positions"):
        llm.generate([PROMPT], params(POLICIES[0]))
