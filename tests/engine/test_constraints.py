"""Constraints as the engine sees them: a matcher for each sequence, whatever else befalls it."""

from __future__ import annotations

import math
import random
from array import array
from typing import Any

import pytest
import torch

from engine.tiny import VOCABULARY
from pagoda import LLM, FinishReason, RequestOutput, SamplingParams, StructuredOutputs
from pagoda.engine.request import Sequence, new_request
from pagoda.engine.sampling import edit_logits
from pagoda.errors import StructuredOutputError
from pagoda.models.model import GenerationTokens, Model

EOS = 3
PAGE_NBYTES = 2 * 2 * 2 * 16 * 4 * 16  # planes x layers x KV heads x width x fp32 x tokens
WANTED = StructuredOutputs(regex="whatever the constraint below says")
GREEDY = SamplingParams(temperature=0, max_tokens=40, structured_outputs=WANTED)

pytestmark = pytest.mark.usefixtures("one_thread")


class Stairs:
    """Token number i is a multiple of 7 plus i; after `length` of them only the end is left."""

    def __init__(self, length: int = 30, end: frozenset[int] = frozenset()) -> None:
        self._length = length
        self._end = end
        self.pushed: list[int] = []

    def new(self) -> Stairs:
        return Stairs(self._length, self._end)

    def mask(self, logits: torch.Tensor) -> None:
        number = len(self.pushed)
        allowed = [token for token in range(VOCABULARY) if token % 7 == number % 7] if number < self._length else []
        banned = torch.ones(len(logits), dtype=torch.bool)
        banned[[*allowed, *self._end]] = False
        logits.masked_fill_(banned, -math.inf)

    def push(self, token: int) -> None:
        self.pushed.append(token)

    @property
    def is_ready(self) -> bool:
        return True

    @property
    def is_done(self) -> bool:
        return len(self.pushed) >= self._length


class Compiler:
    """Gives everybody who asks for a form the same constraint."""

    def __init__(self, constraint: Any) -> None:
        self._constraint = constraint

    def compile(self, wanted: StructuredOutputs | None) -> Any:
        return None if wanted is None else self._constraint


@pytest.fixture
def ending(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The same model with a token that ends sequences, and one that it never generates."""
    monkeypatch.setattr(model, "generation", GenerationTokens(end=frozenset({EOS}), banned=frozenset({8})))
    return model


def make(model: Model, constraint: Any = None, num_pages: int = 256, **options: Any) -> LLM:
    llm = LLM(model, block_size=16, kv_cache_memory_bytes=num_pages * PAGE_NBYTES, num_threads=1, **options)
    llm.grammars = Compiler(constraint or Stairs())  # type: ignore[assignment]
    return llm


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()


PROMPTS = [prompt(20, seed) for seed in range(8)]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [sample.token_ids for output in outputs for sample in output.outputs]


def fits(token_ids: list[int], length: int = 30) -> bool:
    return len(token_ids) == length and all(token % 7 == i % 7 for i, token in enumerate(token_ids))


@pytest.mark.parametrize("temperature", [0, 2.0])
def test_every_token_fits_and_the_sequence_stops_when_nothing_can_follow(model, temperature):
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=40, structured_outputs=WANTED)
    with make(model) as llm:
        for output in llm.generate(PROMPTS, params):
            assert fits(output.outputs[0].token_ids)
            assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (FinishReason.STOP, None)


@pytest.mark.parametrize("temperature", [0, 2.0])
def test_preempted_sequences_give_the_same_tokens(model, temperature):
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=40, structured_outputs=WANTED)
    with make(model) as roomy, make(model, num_pages=13) as tight:
        crowded = tight.generate(PROMPTS, params)
        assert sum(output.metrics.num_preemptions for output in crowded) > 0
        assert tokens(crowded) == tokens(roomy.generate(PROMPTS, params))
        assert all(map(fits, tokens(crowded)))
        tight.check_integrity()


def test_unconstrained_requests_beside_constrained_ones_are_unchanged(model):
    free = SamplingParams(temperature=0, max_tokens=20)
    with make(model) as llm:
        alone = [llm.generate(each, free)[0].outputs for each in PROMPTS[:4]]
        mixed = llm.generate(PROMPTS, [*[free] * 4, *[GREEDY] * 4])
        assert [output.outputs for output in mixed[:4]] == alone
        assert all(map(fits, tokens(mixed[4:])))


def test_every_sample_has_a_matcher_of_its_own(model):
    params = SamplingParams(n=4, seed=1, temperature=2.0, max_tokens=40, structured_outputs=WANTED)
    with make(model) as llm:
        found = tokens(llm.generate(PROMPTS[0], params))
    assert all(map(fits, found))
    assert len(set(map(tuple, found))) > 1


def test_a_bias_allows_nothing_that_does_not_fit(model):
    params = SamplingParams(temperature=0, max_tokens=40, logit_bias={1: 1e30, 9: 1e4}, structured_outputs=WANTED)
    with make(model) as llm:
        found = tokens(llm.generate(PROMPTS[0], params))[0]
    assert fits(found)
    assert found[1] == 1 and found[2] == 9, "and it counts among what does"


def test_log_probabilities_are_those_before_the_mask(model):
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=1, structured_outputs=WANTED)
    with make(model) as llm:
        entries = llm.generate(PROMPTS[0], params)[0].outputs[0].logprobs
        assert entries is not None
        free = SamplingParams(temperature=0, max_tokens=1, logprobs=VOCABULARY)
        first = llm.generate(PROMPTS[0], free)[0].outputs[0].logprobs
        assert first is not None
        # Computed alone the last row of a prompt may round otherwise than beside others.
        assert entries[0].logprob == pytest.approx(first[0].top[entries[0].token_id], abs=1e-4)
        assert list(entries[0].top) == [first[0].token_id]
        assert max(entry.rank for entry in entries) > 1


def test_the_end_counts_as_it_does_elsewhere(ending):
    """It may come once it fits, not below min_tokens, and not at all if it is ignored."""
    anytime = Stairs(end=frozenset({EOS}))
    params = {"temperature": 0, "max_tokens": 40, "structured_outputs": WANTED, "logit_bias": {EOS: 1e9}}
    with make(ending, anytime) as llm:
        at_once = llm.generate(PROMPTS[0], SamplingParams(**params))[0].outputs[0]
        assert (at_once.token_ids, at_once.finish_reason) == ([EOS], FinishReason.STOP)
        later = llm.generate(PROMPTS[0], SamplingParams(**params, min_tokens=6))[0].outputs[0]
        assert len(later.token_ids) == 7 and later.token_ids[-1] == EOS
        ignored = llm.generate(PROMPTS[0], SamplingParams(**params, ignore_eos=True))[0].outputs[0]
        assert fits(ignored.token_ids) and ignored.finish_reason is FinishReason.STOP


def test_a_complete_output_ends_below_min_tokens_and_at_max_tokens(model):
    with make(model, Stairs(length=5)) as llm:
        for more in ({"min_tokens": 9}, {"max_tokens": 5}):
            params = SamplingParams(**{"temperature": 0, "max_tokens": 40, "structured_outputs": WANTED, **more})
            output = llm.generate(PROMPTS[0], params)[0].outputs[0]
            assert len(output.token_ids) == 5 and output.finish_reason is FinishReason.STOP


class OneToken(Stairs):
    """Allows token 8 alone, which the model of these tests bans."""

    def new(self) -> OneToken:
        return OneToken()

    def mask(self, logits: torch.Tensor) -> None:
        value = float(logits[8])
        logits.fill_(-math.inf)
        logits[8] = value


@pytest.mark.parametrize("more", [{}, {"logit_bias": {8: 100.0}}, {"n": 3, "temperature": 1.0}])
def test_where_no_token_is_left_that_request_ends_with_an_error_and_others_go_on(ending, more):
    params = SamplingParams(**{"temperature": 0, "structured_outputs": WANTED, **more})
    free = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with make(ending, OneToken()) as llm:
        chunks = llm.stream(PROMPTS[1], free)
        next(chunks)
        with pytest.raises(StructuredOutputError, match="ruled out by the model"):
            llm.generate(PROMPTS[0], params)
        streamed = [token for chunk in chunks for token in chunk.token_ids]
        assert len(streamed) == 19
        llm.check_integrity()
        assert llm.cache_stats().groups[0].in_use == 0
        assert llm.generate(PROMPTS[0], free)[0].num_cached_tokens == len(PROMPTS[0]) - 1, "its pages were good"


class Broken(Stairs):
    """Fails at the third token."""

    def new(self) -> Broken:
        return Broken()

    def mask(self, logits: torch.Tensor) -> None:
        if len(self.pushed) == 2:
            raise StructuredOutputError("out of fuel")
        super().mask(logits)


def test_a_matcher_that_gives_up_ends_its_request(model):
    with make(model, Broken()) as llm:
        with pytest.raises(StructuredOutputError, match="out of fuel"):
            llm.generate(PROMPTS[0], GREEDY)
        llm.check_integrity()


def test_the_engine_refuses_a_form_without_a_constraint(model):
    with make(model) as llm, pytest.raises(StructuredOutputError, match="constraint"):
        llm.engine.add(new_request("x", [1], GREEDY))


@pytest.mark.parametrize("params", [{"logit_bias": {1: 1e38}}, {"repetition_penalty": 1e30}])
def test_what_is_ruled_out_stays_so_whatever_is_edited(params):
    sequence = Sequence(new_request("x", [0, 1], SamplingParams(**params)), 0, array("i", [0, 1]), random.Random(0))
    edited = edit_logits(torch.tensor([1.0, -math.inf, 2.0]), sequence, frozenset())
    assert float(edited[1]) == -math.inf and edited.isfinite().tolist() == [True, False, True]


class Slow(Stairs):
    """Does not know what may follow every third token until somebody has asked `patience` times."""

    def __init__(self, length: int = 30, patience: float = 3) -> None:
        super().__init__(length)
        self._patience = patience
        self._asked = 0

    def new(self) -> Slow:
        return Slow(self._length, self._patience)

    def push(self, token: int) -> None:
        super().push(token)
        self._asked = 0

    @property
    def is_ready(self) -> bool:
        self._asked += 1
        return len(self.pushed) % 3 != 2 or self._asked > self._patience

    def mask(self, logits: torch.Tensor) -> None:
        assert self.is_ready, "the engine must not wait for this one"
        super().mask(logits)

    @property
    def is_done(self) -> bool:
        assert self.is_ready
        return super().is_done


@pytest.mark.parametrize(("num_pages", "max_tokens"), [(256, 40), (13, 40), (256, 29)])
def test_a_sequence_is_held_until_its_matcher_knows_what_may_follow(model, num_pages, max_tokens):
    params = SamplingParams(temperature=0, max_tokens=max_tokens, structured_outputs=WANTED)
    with make(model) as prompt_llm, make(model, Slow(), num_pages) as llm:
        outputs = llm.generate(PROMPTS, params)
        assert tokens(outputs) == tokens(prompt_llm.generate(PROMPTS, params))
        assert {each.outputs[0].finish_reason for each in outputs} == {
            FinishReason.STOP if max_tokens > 30 else FinishReason.LENGTH
        }
        if num_pages == 13:
            assert sum(output.metrics.num_preemptions for output in outputs) > 0
        llm.check_integrity()
        assert llm.cache_stats().groups[0].in_use == 0


def test_others_go_on_beside_a_sequence_that_is_held_for_ever(model):
    with make(model, Slow(patience=math.inf)) as llm:
        chunks = llm.stream(PROMPTS[0], GREEDY)
        next(chunks), next(chunks)
        free = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        assert len(llm.generate(PROMPTS[1], free)[0].outputs[0].token_ids) == 60
        assert llm.cache_stats().groups[0].in_use > 0
        chunks.close()
        assert len(llm.generate(PROMPTS[1], free)[0].outputs[0].token_ids) == 60
        assert llm.cache_stats().groups[0].in_use == 0
        llm.check_integrity()


def test_an_engine_ends_while_all_it_has_is_held(model):
    with make(model, Slow(patience=math.inf)) as llm:
        chunks = llm.stream(PROMPTS[0], GREEDY)
        next(chunks)
    *_, last = chunks
    assert last.output.outputs[0].finish_reason is FinishReason.ABORT
