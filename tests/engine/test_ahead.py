"""Steps that are queued ahead change nothing that anybody is told, whoever ends, comes, gives way or breaks meanwhile.

They run on a device that computes as late as it may, which shows whatever the host changes too early, and on the
processor, which has computed a step before it is asked for. The same requests on an engine that waits for every step
say what is right. Nothing here has run on a card.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tiny import PAGE_TOKENS, POOL_NBYTES, VOCABULARY, tiny_model, windowed_model
from late_device import LateKernels, late_device
from pagoda.cache.cache import Cache
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.pool import PagePool
from pagoda.config import EngineConfig
from pagoda.engine.ahead import Ahead
from pagoda.engine.batch import Batch
from pagoda.engine.engine import Engine
from pagoda.engine.forward import Forward, Queued
from pagoda.engine.request import FinishReason, Request, Sequence, new_request
from pagoda.engine.scheduler import Scheduler
from pagoda.engine.settle import Settler
from pagoda.errors import NonFiniteCacheError
from pagoda.kernels.base import Kernels
from pagoda.kernels.native import NativeKernels
from pagoda.kernels.native_recording import NativeRecorder
from pagoda.kernels.reference import ReferenceKernels
from pagoda.models.model import Model
from pagoda.sampling_params import SamplingParams

MOST_STEPS = 3000
PAGE_NBYTES = 2 * 2 * 2 * 16 * 4 * PAGE_TOKENS  # planes x layers x KV heads x width x fp32 x tokens
PLAIN = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 7, "min_p": 0.01},
)


@dataclass
class Asked:
    """A request that comes before step `at`, and is cancelled before step `until`, if it still runs then."""

    prompt: list[int]
    params: dict[str, Any]
    at: int = 0
    until: int | None = None
    stop: int | None = None  # a token that completes a stop string

    def request(self, number: int) -> Request:
        request = new_request(str(number), self.prompt, SamplingParams(**{"seed": number, **self.params}))
        if self.stop is not None:
            request.watch = lambda _, token: "stop" if token == self.stop else None
        return request


@dataclass
class Told:
    """What callers heard: of each sample its tokens and its end."""

    tokens: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    ends: dict[tuple[str, int], tuple[FinishReason | None, Any]] = field(default_factory=dict)
    errors: dict[str, type[Exception]] = field(default_factory=dict)
    logprobs: dict[tuple[str, int], list[float]] = field(default_factory=dict)


def leave(engine: Engine, number: int) -> None: ...


def run(engine: Engine, asked: list[Asked], between: Callable[[Engine, int], None] = leave) -> Told:
    """Step until all have ended, and look at the counts of pages after each step.

    What happens `between` steps is said by their number.
    """
    told = Told()
    for number in range(MOST_STEPS):
        for index, each in enumerate(asked):
            if each.at == number:
                engine.add(each.request(index))
            if each.until == number:
                note(told, engine.cancel(str(index)))
        if engine.has_work:
            between(engine, number)
            note(told, engine.step())
        elif number >= max(each.at for each in asked):
            break
        engine.inspector.check_integrity()
    assert not engine.has_work
    engine.step()  # which lets go of what is under way still
    engine.inspector.check_integrity()
    counts = [group.holdings.counts for group in engine._cache.groups]
    assert all(each.free + each.idle == each.total for each in counts), "nothing is in use any more"
    return told


def note(told: Told, events: Any) -> None:
    for sequence, token in events:
        key = (sequence.request.request_id, sequence.index)
        assert key not in told.ends, "told of an end before"
        if token is not None:
            told.tokens.setdefault(key, []).append(token)
        if sequence.finish_reason is not None and (token is None or token == sequence.tokens[-1]):
            told.ends[key] = (sequence.finish_reason, sequence.stop_reason)
            told.logprobs[key] = [round(each.logprob, 3) for each in sequence.logprobs]
        if sequence.request.error is not None:
            told.errors[sequence.request.request_id] = type(sequence.request.error)


def prompt(length: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(VOCABULARY) for _ in range(length)]


def many(count: int = 6, seed: int = 0, kinds: Any = PLAIN) -> list[Asked]:
    """Prompts of any length, answers too."""
    source = random.Random(seed)
    return [
        Asked(prompt(source.randrange(1, 60), seed + each), {**kinds[each % len(kinds)], "max_tokens": 5 + 4 * each})
        for each in range(count)
    ]


def make(model: Model, kernels: Kernels, **options: Any) -> Engine:
    sizes = {"kv_cache_memory_bytes": POOL_NBYTES, "block_size": PAGE_TOKENS, "max_num_seqs": 4}
    return Engine(model, kernels, EngineConfig(**{**sizes, **options}))


class AtOnce(NativeKernels):
    """The processor's kernels, as if a step were over later."""

    def __init__(self) -> None:
        super().__init__()
        recorder = NativeRecorder(self)
        recorder.runs_before, recorder.answers_later = 1, True
        self._at_once = recorder

    @property
    def recorder(self) -> NativeRecorder:
        return self._at_once


class Engines:
    """Starts engines that queue steps ahead, and those that do not."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._kind = kind
        self._monkeypatch = monkeypatch

    def waiting(self, model: Model, **options: Any) -> Engine:
        return make(model, NativeKernels() if self._kind == "at once" else ReferenceKernels(), **options)

    @contextmanager
    def ahead(self, model: Model, **options: Any) -> Iterator[Engine]:
        if self._kind == "at once":
            yield make(model, AtOnce(), **options)
            return
        with late_device(self._monkeypatch, seed=None if self._kind == "late" else 1) as card:
            yield make(model, LateKernels(card), **options)


@pytest.fixture(params=["late", "at once"])
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compared(engines: Engines, model: Model, asked: list[Asked], **options: Any) -> Engine:
    """The engine that queued steps ahead, once it has told the same as the other one."""
    plain = engines.waiting(model, **options)
    expected = run(plain, asked)
    assert not plain.ahead.num_steps
    with engines.ahead(model, **options) as ahead:
        assert run(ahead, asked) == expected
    assert ahead.ahead.num_steps
    return ahead


def test_greedy_and_seeded_draws_are_the_same(engines: Engines, model: Model) -> None:
    engine = compared(engines, model, many())
    assert engine.ahead.num_taken == engine.ahead.num_rows, "all ended when it was known that they would"


def test_what_looks_at_logits_is_computed_in_its_turn(engines: Engines, model: Model) -> None:
    kinds = ({"temperature": 0.0}, {"presence_penalty": 1.5}, {"temperature": 0.9}, {"logprobs": 2}, {"min_tokens": 3})
    compared(engines, model, many(kinds=kinds), max_num_seqs=2)


def test_nobody_is_served_ahead_while_one_sequence_is_not_plain(engines: Engines, model: Model) -> None:
    with engines.ahead(model) as ahead:
        asked = many(count=2, kinds=({"temperature": 0.0}, {"repetition_penalty": 1.3}))
        asked[0].params["max_tokens"] = asked[1].params["max_tokens"]
        run(ahead, asked)
        assert not ahead.ahead.num_steps


def test_logprobs_are_those_of_the_step_that_drew_the_token(engines: Engines, model: Model) -> None:
    asked = many(count=3, kinds=({"temperature": 0.0, "logprobs": 2}, {"temperature": 1.0, "logprobs": 0}))
    expected = run(engines.waiting(model), asked)
    with engines.ahead(model) as ahead:
        assert run(ahead, asked) == expected
        assert not ahead.ahead.num_steps


def test_sequences_that_are_sent_back_and_start_again_at_once(engines: Engines, model: Model) -> None:
    """Their next step has the same tokens as what is under way of them, in other pages."""

    def send_back(engine: Engine, number: int) -> None:
        running = engine._scheduler.running
        if number % 4 == 3 and len(running) > 1:
            engine._scheduler.start_again(running[0])

    asked = many()
    expected = run(engines.waiting(model), asked, send_back)
    with engines.ahead(model) as ahead:
        assert run(ahead, asked, send_back) == expected
        assert ahead.ahead.num_taken < ahead.ahead.num_rows


def test_a_part_of_a_step_tells_of_nobody_else(model: Model) -> None:
    engine = make(model, AtOnce())
    for number, each in enumerate(many(count=3)):
        each.params["max_tokens"] = 30
        engine.add(each.request(number))
    while engine.ahead._queued is None:
        engine.step()
    queued = engine.ahead._queued
    second = queued.batch.chunks[1]
    computed = replace(queued, batch=Batch((second,))).read()
    assert computed.complete == [(second.sequence, 1)]
    queued.flags._numbers[: len(queued.batch)] = 0
    assert replace(queued, batch=Batch((second,))).read().broken == [second.sequence]


def test_who_is_left_out_of_a_step_gives_back_the_page_it_was_to_write(model: Model) -> None:
    engine = make(model, AtOnce())
    engine.add(Asked(prompt(PAGE_TOKENS - 3, 0), {"temperature": 0.0, "max_tokens": 40}).request(0))
    for _ in range(4 * PAGE_TOKENS):
        engine.step()
        [sequence] = engine._scheduler.running
        assert sequence.cached is not None
        if engine.ahead._queued is not None and sequence.cached.num_tokens % PAGE_TOKENS == 0:
            break
    [group] = engine._cache.groups
    before = group.holdings.counts.free
    assert engine.ahead.take(Batch(())) == (None, Batch(()))
    assert group.holdings.counts.free == before + 1
    engine.inspector.check_integrity()


def test_stop_tokens_and_strings_throw_away_their_own_rows(engines: Engines, model: Model) -> None:
    asked = [Asked(each.prompt, {**each.params, "max_tokens": 25}) for each in many()]
    tokens = run(engines.waiting(model), asked).tokens
    for number, each in enumerate(asked):
        end = tokens[str(number), 0][5 + 3 * number]
        if number % 2:
            each.params["stop_token_ids"] = [end]
        else:
            each.stop = end
    engine = compared(engines, model, asked)
    thrown = engine.ahead.num_rows - engine.ahead.num_taken
    assert 0 < thrown <= len(asked), "those of the ones that ended"


def test_rows_of_those_that_go_on_are_used_when_others_come_and_go(engines: Engines, model: Model) -> None:
    asked = many(count=7)
    for number, each in enumerate(asked):
        each.at = 4 * number
        each.until = 4 * number + 9 if number % 3 == 0 else None
        each.params["max_tokens"] = 16
    engine = compared(engines, model, asked)
    assert 0 < engine.ahead.num_taken < engine.ahead.num_rows


def test_samples_fork_and_go_on(engines: Engines, model: Model) -> None:
    asked = [Asked(prompt(20 + each, each), {"temperature": 1.0, "n": 3, "max_tokens": 11}) for each in range(2)]
    compared(engines, model, [*asked, Asked([7], {"temperature": 1.0, "n": 2, "max_tokens": 9})], max_num_seqs=7)


def test_sequences_that_read_some_of_their_pages_do_so_ahead(engines: Engines, model: Model) -> None:
    """Beside one that reads all: whose steps are recorded apart from those of nobody who chooses."""
    asked = [Asked(prompt(60 + 9 * each, each), {**PLAIN[each % 4], "max_tokens": 14}) for each in range(4)]
    asked[2].params["sparse_attention"] = "none"
    engine = compared(engines, model, asked, sparse_attention=f"quest:tokens={3 * PAGE_TOKENS},dense_layers=1")
    assert engine.ahead.num_taken


@pytest.mark.parametrize("rest", ["", ",head_floor=0.2"], ids=["even", "packed"])
def test_sequences_that_have_been_compressed_once_go_on_ahead(engines: Engines, model: Model, rest: str) -> None:
    """Beside one that is not compressed; not while one may be compressed again."""
    policy = f"snapkv:tokens={2 * PAGE_TOKENS},window=4,kernel=3{rest}"
    asked = [Asked(prompt(60 + 9 * each, each), {"temperature": 0.0, "max_tokens": 14}) for each in range(3)]
    asked[1].params["kv_compression"] = "none"
    engine = compared(engines, model, asked, kv_compression=policy)
    assert engine.ahead.num_taken
    with engines.ahead(model, kv_compression=f"h2o:tokens={2 * PAGE_TOKENS},every=8") as again:
        run(again, asked[:1])
        assert not again.ahead.num_steps


@pytest.mark.parametrize("length", [PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1])
def test_what_is_queued_before_samples_fork_is_read_by_none_but_the_first(
    engines: Engines, model: Model, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """It is written behind the tokens of a page that all share then, or into a page that the first has for it."""
    samples = {"temperature": 1.0, "n": 3, "max_tokens": PAGE_TOKENS + 3}
    asked = [Asked([7], {"temperature": 0.0, "max_tokens": 6}), Asked(prompt(length, 1), samples, at=9)]
    expected = run(engines.waiting(model), asked)
    fork, queued = Scheduler.fork, list[bool]()
    with engines.ahead(model) as engine:

        def watched(self: Scheduler, sequence: Sequence, twins: list[Sequence]) -> None:
            queued.append(sequence in engine.ahead._rows)
            fork(self, sequence, twins)

        monkeypatch.setattr(Scheduler, "fork", watched)
        assert run(engine, asked) == expected
    assert queued == [True]


def test_prompts_that_are_only_computed_and_short_answers(engines: Engines, model: Model) -> None:
    asked = many(count=7)
    for number, each in enumerate(asked):
        each.params["max_tokens"] = (0, 1, 2, 12)[number % 4]
    compared(engines, model, asked)


def test_sequences_end_where_the_context_does(engines: Engines, model: Model) -> None:
    asked = [Asked(prompt(30 + each, each), PLAIN[each % 4]) for each in range(4)]
    compared(engines, model, asked, max_model_len=48)


@pytest.mark.parametrize("num_pages", [11])
def test_few_pages(engines: Engines, model: Model, num_pages: int) -> None:
    """Sequences are sent back, pages are evicted, and pages are not there for steps ahead."""
    asked = [Asked(prompt(20, each % 4), {**PLAIN[each % 4], "max_tokens": 26}) for each in range(6)]
    options = {"kv_cache_memory_bytes": num_pages * PAGE_NBYTES, "max_model_len": 160}
    told = run(engines.waiting(model, **options), asked)
    with engines.ahead(model, **options) as ahead:
        requests = list[Request]()
        add = ahead.add
        ahead.add = lambda request: (requests.append(request), add(request))  # type: ignore[assignment, func-returns-value]
        assert run(ahead, asked) == told
        assert ahead.ahead.num_steps
        assert num_pages > 11 or sum(each.metrics.num_preemptions for each in requests)


def test_answers_are_hit_by_those_who_come_after(engines: Engines, model: Model) -> None:
    """What a row that was thrown away wrote lies behind the tokens that others hit."""
    first = many()
    answers = run(engines.waiting(model), first).tokens
    later = [
        Asked([*each.prompt, *answers[str(number), 0], 5], {"temperature": 0.0, "max_tokens": 20})
        for number, each in enumerate(first)
    ]
    expected = run(engines.waiting(model), later).tokens
    with engines.ahead(model) as ahead:
        assert run(ahead, first).tokens == answers
        assert run(ahead, later).tokens == expected
        assert ahead._cache.hit_tokens > sum(len(each.prompt) for each in first)


@pytest.mark.parametrize("format", ["int4"])
def test_pages_of_few_bits(engines: Engines, model: Model, format: str) -> None:
    asked = many()
    for number, each in enumerate(asked):
        each.until = 12 + number if number % 4 == 0 else None
    compared(engines, model, asked, kv_cache_dtype=format)


def test_windows(engines: Engines) -> None:
    asked = [Asked(prompt(10 + 7 * each, each), {**PLAIN[each % 4], "max_tokens": 25}) for each in range(4)]
    compared(engines, windowed_model("float32"), asked)


def test_pages_come_and_go_between_a_late_device_and_host_memory(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """Pages that a step ahead may still write to are loaded into by others."""
    rounds = [many(count=7, seed=each % 2, kinds=PLAIN[:1]) for each in range(4)]
    for each in [each for asked in rounds for each in asked]:
        each.params["max_tokens"] = 25
    expected = [run(make(model, ReferenceKernels()), asked).tokens for asked in rounds[:2]]
    for asked in rounds:
        asked[0].until, asked[3].until, asked[6].until = 9, 20, 30
    with late_device(monkeypatch, seed=3) as card:
        options = {"kv_cache_memory_bytes": 26 * PAGE_NBYTES, "kv_host_bytes": 64 << 20, "max_model_len": 160}
        engine = make(model, LateKernels(card), **options)
        for number, asked in enumerate(rounds):
            tokens = run(engine, asked).tokens
            for key, told in tokens.items():
                # Who is cancelled has heard less, or more where loads were waited for.
                whole = expected[number % 2][key]
                assert told[: len(whole)] == whole[: len(told)]
        assert engine.residency is not None
        assert engine.residency.report()[0].num_loaded
        assert engine.ahead.num_steps
        engine.close()


def test_what_breaks_ends_alone_and_is_shared_with_nobody(engines: Engines) -> None:
    asked = [Asked(prompt(12 + each, each), {"temperature": 0.0, "max_tokens": 30}) for each in range(5)]
    tokens = run(engines.waiting(tiny_model()), asked).tokens
    others = {token for number in range(1, 5) for token in [*asked[number].prompt, *tokens[str(number), 0]]}
    broken = next(token for token in tokens["0", 0][4:] if token not in others and token not in asked[0].prompt)
    model = tiny_model()
    with torch.no_grad():
        model.network.get_input_embeddings().weight[broken] = torch.nan
    expected = run(engines.waiting(model), asked)
    with engines.ahead(model) as ahead:
        told = run(ahead, asked)
        assert told == expected
        assert told.errors == {"0": NonFiniteCacheError}
        until = tokens["0", 0].index(broken) + 1
        assert told.tokens == {**tokens, ("0", 0): tokens["0", 0][:until]}
        assert ahead.ahead.num_steps
        namespace = asked[0].request(0).namespace
        assert ahead._cache.match(namespace, [*asked[0].prompt, broken], 100).num_tokens == 0


@pytest.mark.parametrize("broken", ["queue_ahead", "is_ready_for"])
def test_a_step_that_cannot_be_queued_is_no_harm(
    engines: Engines, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    source, original, raised = random.Random(0), getattr(Forward, broken), list[Exception]()

    def failing(self: Forward, *arguments: Any) -> Any:
        if source.random() < 0.5:
            if broken == "is_ready_for":
                return False
            raised.append(source.choice((RuntimeError, MemoryError))("no memory"))
            raise raised[-1]
        return original(self, *arguments)

    monkeypatch.setattr(Forward, broken, failing)
    compared(engines, model, many())
    assert broken == "is_ready_for" or len(raised) > 3
    told = [record for record in caplog.records if record.name == "pagoda.engine.ahead"]
    assert sorted(record.exc_info[0].__name__ for record in told) == sorted({type(each).__name__ for each in raised})


POINTS = (
    *((Cache, each) for each in ("reserve", "reserve_ahead", "commit", "release")),
    *((PageGroup, each) for each in ("reserve", "reserve_cost")),
    *((Forward, each) for each in ("queue", "queue_ahead")),
    *((PagePool, "prepare"), (Queued, "read"), (Settler, "ends_soon"), (Ahead, "take")),
)


@pytest.mark.parametrize(("owner", "name"), POINTS)
def test_what_raises_once_leaves_counts_and_the_others_as_they_were(
    model: Model, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    asked = many(count=7)
    expected = run(make(model, NativeKernels()), asked).tokens
    original, raised = getattr(owner, name), list[int]()
    for index in (1, 12, 30):
        calls = itertools.count()

        def failing(*arguments: Any, index: int = index, calls: Iterator[int] = calls) -> Any:
            if next(calls) == index:
                raised.append(index)
                raise RuntimeError("injected")
            return original(*arguments)

        monkeypatch.setattr(owner, name, failing)
        told = run(make(model, AtOnce()), asked)
        for (number, sample), tokens in expected.items():
            if number not in told.errors:
                assert told.tokens[number, sample] == tokens
    assert raised


@settings(max_examples=5)
@given(seed=st.integers(0, 10_000), num_pages=st.sampled_from([12, 16, 40]), kind=st.sampled_from(["late", "at once"]))
def test_requests_that_come_and_go_at_any_time(seed: int, num_pages: int, kind: str) -> None:
    source = random.Random(seed)
    kinds = [*PLAIN, {"temperature": 1.0, "n": 2}, {"temperature": 0.0, "logprobs": 1}]
    asked = [
        Asked(
            prompt(source.randrange(1, 50), source.randrange(5)),
            {**source.choice(kinds), "max_tokens": source.randrange(1, 16), "seed": source.randrange(9)},
            at=source.randrange(20),
            stop=source.randrange(VOCABULARY),
        )
        for _ in range(7)
    ]
    model = tiny_model()
    options = {"kv_cache_memory_bytes": num_pages * PAGE_NBYTES, "max_model_len": 80, "max_num_seqs": 4}
    expected = run(make(model, ReferenceKernels() if kind == "late" else NativeKernels(), **options), asked)
    if kind == "at once":
        assert run(make(model, AtOnce(), **options), asked) == expected
        return
    with pytest.MonkeyPatch.context() as patch, late_device(patch, seed) as card:
        assert run(make(model, LateKernels(card), **options), asked) == expected


def test_the_host_waits_for_nothing_but_what_it_asked_for(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    with late_device(monkeypatch) as card:
        engine = make(model, LateKernels(card), max_num_seqs=4)
        run(engine, [Asked(prompt(9, each), {**PLAIN[each], "max_tokens": 30}) for each in range(4)])
        before, steps = card.num_waits, engine.ahead.num_steps
        run(engine, [Asked(prompt(9, 9 + each), {**PLAIN[each], "max_tokens": 30}) for each in range(4)])
        assert engine.ahead.num_steps >= steps + 25
        assert card.num_waits == before


def test_a_step_is_queued_before_the_one_before_is_read(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    order = list[str]()
    queue_ahead, read = Forward.queue_ahead, Sequence.take_draw_key
    monkeypatch.setattr(
        Forward, "queue_ahead", lambda self, *each: (order.append("queued"), queue_ahead(self, *each))[1]
    )
    monkeypatch.setattr(Sequence, "take_draw_key", lambda self: (order.append("read"), read(self))[1])
    engine = make(model, AtOnce())
    run(engine, [Asked([3, 4], {"temperature": 1.0, "max_tokens": 20})])
    first = order.index("queued")
    assert order[first : first + 8] == ["queued", "read"] * 4
