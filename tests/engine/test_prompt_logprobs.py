"""Log-probabilities of prompts: equal to transformers' own forward, however the prompt comes to be computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from engine.tiny import VOCABULARY
from oracle.families import build_tiny
from pagoda import LLM, RequestOutput, SamplingParams
from pagoda.engine import scoring
from pagoda.engine.forward import Forward
from pagoda.errors import InvalidSamplingError, NonFiniteLogitsError
from pagoda.models.loader import model_from_config
from pagoda.models.model import Model

PAGE_NBYTES = 2 * 2 * 2 * 16 * 4 * 16  # planes x layers x KV heads x width x fp32 x tokens
TOP = 3
SCORED = SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=TOP)
PLAIN = SamplingParams(temperature=0, max_tokens=4)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """Grows by the rows of logits to be scored in each step, by length of prompt."""
    found: list[dict[int, int]] = []
    queue = Forward.queue

    def noted(self: Forward, *arguments: Any) -> Any:
        queued = queue(self, *arguments)
        found.append({len(each.request.prompt): len(rows) for each, rows in queued.prompt_logits.items()})
        return queued

    monkeypatch.setattr(Forward, "queue", noted)
    return found


def make(model: Model, num_pages: int = 256, **options: Any) -> LLM:
    return LLM(model, block_size=16, kv_cache_memory_bytes=num_pages * PAGE_NBYTES, num_threads=1, **options)


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()


PROMPTS = [prompt(length, seed=length) for length in (1, 2, 16, 17, 33, 100, 160)]


@torch.inference_mode()
def logits_of(network: Any, *inputs: list[int]) -> torch.Tensor:
    return network(*(torch.tensor([each]) for each in inputs), use_cache=False).logits[0].float()


@pytest.fixture(scope="module")
def expected(model: Model) -> list[torch.Tensor]:
    """Logits of each prompt by transformers' own attention."""
    network = model_from_config(copy.deepcopy(model.config), dtype="float32", seed=0).network
    network.set_attn_implementation("eager")
    return [logits_of(network, each) for each in PROMPTS]


def check(output: RequestOutput, logits: torch.Tensor) -> None:
    """The plain definition, within the rounding of fp32 that `oracle/generation.py` explains."""
    tolerance = float(logits.abs().max()) * 2.0**-14
    assert output.prompt_logprobs is not None
    first, *found = output.prompt_logprobs
    assert first is None
    rows = zip(found, output.prompt_token_ids[1:], logits[:-1].log_softmax(dim=-1), strict=True)
    for entry, token, row in rows:
        assert entry is not None and entry.token_id == token and len(entry.top) == TOP
        assert abs(entry.logprob - float(row[token])) <= tolerance
        better, as_good = (int((row > row[token] + margin).sum()) for margin in (tolerance, -tolerance))
        assert better + 1 <= entry.rank <= as_good
        best = row.topk(TOP).values.tolist()
        assert list(entry.top.values()) == pytest.approx(best, abs=tolerance)
        assert all(abs(value - float(row[other])) <= tolerance for other, value in entry.top.items())


def values(outputs: list[RequestOutput]) -> list[Any]:
    return [output.prompt_logprobs for output in outputs]


def test_cold_and_warm_prompts_have_hugging_faces_values_and_the_same_bits(model, expected):
    with make(model) as llm:
        for tokens, logits in zip(PROMPTS, expected, strict=True):
            cold, warm = (llm.generate(tokens, SCORED)[0] for _ in range(2))
            check(cold, logits)
            assert warm.prompt_logprobs == cold.prompt_logprobs
            assert warm.num_cached_tokens == 0
            llm.check_integrity()


def test_they_are_none_unless_asked_for_and_change_no_token(model):
    with make(model) as llm:
        plain, scored = llm.generate(PROMPTS, PLAIN), llm.generate(PROMPTS, SCORED)
        assert values(plain) == [None] * len(PROMPTS)
        assert [each.outputs for each in plain] == [each.outputs for each in scored]


def test_no_row_of_others_goes_through_the_head(model, steps):
    with make(model) as llm:
        llm.generate([prompt(40), prompt(50, seed=1)], [PLAIN, SCORED])
        assert [each for each in steps if each] == [{50: 49}]


@pytest.mark.parametrize("max_num_batched_tokens", [7, 16, 37])
def test_chunks_beside_others_give_the_same_values(model, expected, max_num_batched_tokens):
    with make(model, max_num_seqs=4, max_num_batched_tokens=max_num_batched_tokens) as llm:
        for _ in range(2):
            others = [PLAIN] * len(PROMPTS)
            outputs = llm.generate([*PROMPTS, *PROMPTS], [*others, *[SCORED] * len(PROMPTS)])[len(PROMPTS) :]
            for output, logits in zip(outputs, expected, strict=True):
                check(output, logits)
            llm.check_integrity()


def test_preempted_prompts_give_the_same_values_and_score_no_row_twice(model, expected, steps):
    """A third request decodes, so that two prompts in chunks run out of pages between them."""
    params = SamplingParams(temperature=0, max_tokens=64, prompt_logprobs=TOP)
    with make(model, num_pages=13, max_num_batched_tokens=12, max_num_seqs=4) as llm:
        outputs = llm.generate(PROMPTS, params)
        preempted = [each for each in outputs if each.metrics.num_preemptions]
        assert preempted
        for output, logits in zip(outputs, expected, strict=True):
            check(output, logits)
        rows = {length: sum(step.get(length, 0) for step in steps) for length in map(len, PROMPTS)}
        assert rows == {length: length - 1 for length in rows}
        llm.check_integrity()


def test_a_prompt_preempted_half_way_resumes_from_what_is_scored(model, expected, monkeypatch):
    """Sent back after its second chunk, it goes on from its pages though its tokens may not be matched at first."""
    with make(model, max_num_batched_tokens=32, max_num_seqs=8) as llm:
        scheduler = llm.engine._scheduler
        schedule = scheduler.schedule
        starts: list[int] = []

        def interrupted() -> Any:
            running = [each for each in scheduler.running if each.num_unscored]
            if running and len(starts) == 2:
                scheduler._preempt(running[0])
            plan = schedule()
            starts.extend(chunk.start for chunk in plan.chunks)
            return plan

        monkeypatch.setattr(scheduler, "schedule", interrupted)
        check(llm.generate([PROMPTS[-1]], SCORED)[0], expected[-1])
        assert starts[:4] == [0, 32, 64, 96]
        llm.check_integrity()


def test_samples_share_the_values_of_their_prompt(model, expected):
    with make(model) as llm:
        output = llm.generate([PROMPTS[4]], SamplingParams(n=3, seed=1, max_tokens=4, prompt_logprobs=TOP))[0]
        check(output, expected[4])
        assert len(output.outputs) == 3


def test_pages_of_a_scored_prompt_are_shared_with_others(model):
    with make(model) as llm:
        llm.generate([PROMPTS[-1]], SCORED)
        used = llm.cache_stats().groups[0].idle
        assert llm.generate([PROMPTS[-1]], PLAIN)[0].num_cached_tokens == len(PROMPTS[-1]) - 1
        llm.generate([PROMPTS[-1]], SCORED)
        assert llm.cache_stats().groups[0].idle == used


def test_rows_of_logits_are_limited_in_a_step_and_others_go_on(model, expected, steps, monkeypatch):
    monkeypatch.setattr(scoring, "MAX_SCORED_NBYTES", 20 * VOCABULARY * 4)
    with make(model) as llm:
        outputs = llm.generate([*PROMPTS, prompt(90, seed=5)], [*[SCORED] * len(PROMPTS), PLAIN])
        for output, logits in zip(outputs, expected, strict=False):
            check(output, logits)
        assert max(sum(step.values()) for step in steps) == 20
        # All but the last three prompts are scored in two steps; what is not to be scored waits for none of that.
        assert outputs[-1].metrics.first_token < min(each.metrics.first_token for each in outputs[4:-1])
        llm.check_integrity()


def test_a_prompt_to_be_scored_waits_for_no_page_of_others(model, steps):
    """It has to compute every row anyway."""
    with make(model) as llm:
        llm.generate([PROMPTS[-1], PROMPTS[-1]], [PLAIN, SCORED])
        assert steps[0] == {len(PROMPTS[-1]): len(PROMPTS[-1]) - 1}


def test_a_limit_below_one_row_still_scores(model, expected, monkeypatch):
    monkeypatch.setattr(scoring, "MAX_SCORED_NBYTES", 1)
    with make(model) as llm:
        check(llm.generate([PROMPTS[3]], SCORED)[0], expected[3])


@pytest.mark.parametrize("family", ["gemma2", "mamba2", "jamba", "deepseek_v3"])
def test_windows_states_and_latents_give_the_same_values(family):
    network = build_tiny(family)
    tokens = torch.randint(5, 100, (37,), generator=torch.Generator().manual_seed(1)).tolist()
    logits = logits_of(network, tokens)
    with LLM(
        Model.from_transformers(network),
        kv_cache_memory_bytes=8 << 20,
        num_threads=1,
        max_num_batched_tokens=16,
        max_num_seqs=4,
    ) as llm:
        cold, warm = (llm.generate([tokens], SCORED)[0] for _ in range(2))
        check(cold, logits)
        check(warm, logits)
        llm.check_integrity()


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_prompts_of_decoders_with_an_encoder_give_the_same_values(family):
    network = build_tiny(family)
    read, start = ([each % 90 + 5 for each in prompt(length, seed=length)] for length in (21, 19))
    with LLM(Model.from_transformers(network), kv_cache_memory_bytes=8 << 20, num_threads=1) as llm:
        asked = {"encoder_prompt": read, "decoder_prompt": start}
        cold, warm = (llm.generate(asked, SCORED)[0] for _ in range(2))
        check(cold, logits_of_decoder(network, read, cold.prompt_token_ids))
        assert warm.prompt_logprobs == cold.prompt_logprobs
        assert warm.num_cached_encoder_tokens == len(read)


@torch.inference_mode()
def logits_of_decoder(network: Any, read: list[int], start: list[int]) -> torch.Tensor:
    ids = {"input_ids": torch.tensor([read]), "decoder_input_ids": torch.tensor([start])}
    return network(**ids, use_cache=False).logits[0].float()


def test_nan_in_a_row_of_the_prompt_ends_that_request_alone(model, monkeypatch):
    forward = Model.forward

    def broken(self: Model, tokens: torch.Tensor, *arguments: Any) -> torch.Tensor:
        logits = forward(self, tokens, *arguments).clone()
        if len(logits) > 2:
            logits[1] = float("nan")
        return logits

    with make(model) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(Model, "forward", broken)
            with pytest.raises(NonFiniteLogitsError):
                llm.generate([prompt(20)], SCORED)
            llm.generate([prompt(20), prompt(30)], PLAIN)
        llm.check_integrity()


def test_more_than_the_vocabulary_is_refused(model):
    with make(model) as llm, pytest.raises(InvalidSamplingError, match="prompt_logprobs is 201"):
        llm.generate([prompt(3)], SamplingParams(prompt_logprobs=VOCABULARY + 1))
