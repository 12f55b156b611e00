"""A batch is data that nobody changes, and settling a step decides how much of it counts."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from engine.tiny import VOCABULARY, tiny_model
from pagoda import LLM, SamplingParams
from pagoda.engine.batch import Batch, Chunk
from pagoda.engine.request import Phase
from pagoda.engine.settle import Settler

PROMPT = [token % VOCABULARY for token in range(3, 300, 3)]
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture
def llm() -> Any:
    with LLM(tiny_model(), num_threads=1, block_size=16, max_num_batched_tokens=32, max_num_seqs=4) as llm:
        yield llm


def batches(llm: LLM, monkeypatch: pytest.MonkeyPatch, params: SamplingParams = GREEDY) -> list[Batch]:
    """All that the scheduler hands over for one prompt."""
    scheduler, found = llm.engine._scheduler, []
    schedule = scheduler.schedule
    monkeypatch.setattr(scheduler, "schedule", lambda: found.append(schedule()) or found[-1])
    llm.generate([PROMPT], params, use_tqdm=False)
    return [batch for batch in found if batch]


def test_chunks_follow_one_another_through_a_sequence(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [chunk for batch in batches(llm, monkeypatch) for chunk in batch.chunks]
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    sequence = chunks[0].sequence
    assert [token for chunk in chunks for token in chunk.tokens] == list(sequence.tokens[: chunks[-1].stop])
    assert [len(chunk.drawn) for chunk in chunks] == [0] * 3 + [1] * 8
    assert not any(chunk.scored for chunk in chunks)


def test_rows_to_score_are_those_of_the_prompt_but_the_last(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
    chunks = [chunk for batch in batches(llm, monkeypatch, scored) for chunk in batch.chunks]
    rows = [chunk.start + row for chunk in chunks for row in chunk.scored]
    assert rows == list(range(len(PROMPT) - 1))


def test_a_batch_cannot_be_edited(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batches(llm, monkeypatch)[0]
    with pytest.raises(FrozenInstanceError):
        batch.chunks = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        batch.chunks[0].start = 1  # type: ignore[misc]


def test_what_has_ended_since_is_left_out_of_another_batch(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batches(llm, monkeypatch)[0]
    assert batch.sequences[0].phase is Phase.FINISHED
    assert not batch.unfinished()
    assert len(batch) == 1


def test_tokens_that_do_not_count_are_computed_again(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As drafts that were wrong: whoever settles says how many tokens stay, and the sequence goes on from there."""
    with LLM(tiny_model(), num_threads=1, block_size=16) as whole:
        expected = whole.generate([PROMPT], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    counts: list[int] = []

    def some(settler: Settler, chunk: Chunk) -> int:
        counts.append(chunk.stop if chunk.drawn else chunk.start + (len(chunk.tokens) + 2) // 3)
        return counts[-1]

    monkeypatch.setattr(Settler, "_accepted_tokens", some)
    found = llm.generate([PROMPT], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    assert found == expected
    assert counts[:4] == [11, 22, 33, 44]
    llm.check_integrity()
