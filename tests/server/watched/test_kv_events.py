"""KV events over real sockets: what a router has heard is what the cache holds."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from pagoda import LLM, SamplingParams
from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.names import Identity, PageNames
from pagoda.cache.prefix.namespace import Namespace
from pagoda.cache.prefix.tree import Node, Root
from pagoda.errors import ConfigError
from pagoda.server.backend.local import LocalBackend
from pagoda.server.watched.kv_events import END_OF_REPLAY, KvEvents
from server.running import MOST_SECONDS

PAGE_TOKENS = 32
FIRST_MARK = 1_000_000  # beyond every vocabulary
ONE = SamplingParams(temperature=0, max_tokens=1)


class Router:
    """Holds what events say."""

    def __init__(self, llm: LLM, events: KvEvents) -> None:
        self.llm = llm
        self.events = events
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(events.endpoint)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"kv")
        self.held: dict[int, dict] = {}
        self.numbers: list[int] = []
        self.num_marks = 0
        self.last_mark = 0

    def catch_up(self) -> None:
        """Hear all that has been told, up to a mark; marks are told until one is heard, as subscribing takes time."""
        first = self.num_marks + 1
        deadline = time.monotonic() + MOST_SECONDS
        while self.last_mark < first:
            assert time.monotonic() < deadline, "nothing is heard"
            self.num_marks += 1
            self.llm.loop.call(self.tell_mark).result()
            while self.last_mark < self.num_marks and self.socket.poll(200):
                topic, number, payload = self.socket.recv_multipart()
                assert topic == b"kv"
                self.take(number, payload)

    def tell_mark(self) -> None:
        """A page that no prompt has, stored and gone."""
        page = Node(Root(Namespace()), token_key([FIRST_MARK + self.num_marks] * PAGE_TOKENS), 0)
        self.events.stored(page)
        self.events.removed(page, Reason.RESET)
        self.events.flush()

    def take(self, number: bytes, payload: bytes) -> None:
        self.numbers.append(int.from_bytes(number, "big"))
        _, events, rank = msgspec.msgpack.decode(payload)
        assert rank == 0
        for event in events:
            for name in event["block_hashes"]:
                if event["type"] == "BlockStored":
                    assert name not in self.held
                    assert event["parent_block_hash"] is None or event["parent_block_hash"] in self.held
                    self.held[name] = event
                    self.last_mark = max(self.last_mark, event["token_ids"][0] - FIRST_MARK)
                else:
                    assert event["type"] == "BlockRemoved"
                    del self.held[name]

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM(kv_cache_memory_bytes=4 << 20, num_threads=1, max_model_len=256) as llm:
        yield llm


@pytest.fixture
def events(llm: LLM) -> Iterator[KvEvents]:
    events = KvEvents("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "kv", PAGE_TOKENS, llm.engine.page_names)
    backend = LocalBackend(llm)
    backend.watch(events)
    stop = backend.observe(events.flush)
    yield events
    stop()
    events.close()


def test_a_router_knows_what_the_cache_holds(llm: LLM, events: KvEvents) -> None:
    router = Router(llm, events)
    router.catch_up()
    prompts = [[1000 + number + index % (90 + number) for index in range(200)] for number in range(12)]
    for prompt in prompts:
        llm.generate(prompt, ONE, use_tqdm=False)
    router.catch_up()
    assert llm.cache_stats().evicted_pages
    assert all(len(event["token_ids"]) == event["block_size"] == PAGE_TOKENS for event in router.held.values())
    told = {tuple(event["token_ids"]) for event in router.held.values()}
    assert tuple(prompts[-1][:PAGE_TOKENS]) in told
    idle = llm.cache_stats().groups[0].idle
    tails = len({tuple(prompt) for prompt in prompts})  # at most one short page for each
    assert idle - tails <= len(router.held) <= idle
    llm.reset_prefix_cache()
    llm.generate([7] * 64, ONE, use_tqdm=False)  # events go out with a step
    router.catch_up()
    assert {tuple(event["token_ids"]) for event in router.held.values()} == {(7,) * PAGE_TOKENS}
    assert router.numbers == list(range(router.numbers[0], router.numbers[-1] + 1))
    router.close()


def test_what_was_missed_is_replayed(llm: LLM, events: KvEvents) -> None:
    llm.generate([5] * 100, ONE, use_tqdm=False)
    llm.generate([6] * 100, ONE, use_tqdm=False)
    # Batches wait in a queue for a moment before they are kept.
    deadline = time.monotonic() + MOST_SECONDS
    while (told := replayed(llm, events)) != {(5,) * PAGE_TOKENS, (6,) * PAGE_TOKENS}:
        assert time.monotonic() < deadline, told


def replayed(llm: LLM, events: KvEvents) -> set[tuple[int, ...]]:
    """The pages that somebody knows of who asks for everything."""
    router = Router(llm, events)
    dealer = router.context.socket(zmq.DEALER)
    dealer.connect(events.replay_endpoint)
    dealer.send_multipart([b"", (0).to_bytes(8, "big")])
    while True:
        assert dealer.poll(1000 * MOST_SECONDS)
        _, number, payload = dealer.recv_multipart()
        if number == END_OF_REPLAY:
            break
        router.take(number, payload)
    router.close()
    assert router.numbers == list(range(len(router.numbers)))
    return {tuple(event["token_ids"]) for event in router.held.values()}


def test_an_address_that_cannot_be_had_is_a_named_error(events: KvEvents) -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        KvEvents(events.endpoint, None, "", PAGE_TOKENS, PageNames(Identity()))


def test_a_replay_may_be_asked_for_in_any_frames(llm: LLM, events: KvEvents) -> None:
    llm.generate([5] * 100, ONE, use_tqdm=False)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(events.replay_endpoint)
    for frames in ([b""], [(0).to_bytes(8, "big")], [b"", b"", b"nonsense", b"too long to be a number"]):
        dealer.send_multipart(frames)
        number = None
        while number != END_OF_REPLAY:
            assert dealer.poll(60_000)
            _, number, _ = dealer.recv_multipart()
    context.destroy(linger=0)
