"""KV events over real sockets: what a router has heard is what the cache holds."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import zmq

from pagoda import LLM, SamplingParams
from pagoda.cache.namespace import Namespace
from pagoda.cache.radix import Node, Root, token_key
from pagoda.errors import ConfigError
from pagoda.server.kv_events import END_OF_REPLAY, BlockHashes, KvEvents

PAGE_TOKENS = 32
ONE = SamplingParams(temperature=0, max_tokens=1)


class Router:
    """Holds what events say."""

    def __init__(self, events: KvEvents) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(events.endpoint)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"kv")
        self.held: dict[int, dict] = {}
        self.numbers: list[int] = []

    def listen(self, milliseconds: int = 300) -> None:
        while self.socket.poll(milliseconds):
            topic, number, payload = self.socket.recv_multipart()
            assert topic == b"kv"
            self.numbers.append(int.from_bytes(number, "big"))
            self.take(payload)

    def take(self, payload: bytes) -> None:
        _, events, rank = msgspec.msgpack.decode(payload)
        assert rank == 0
        for event in events:
            for name in event["block_hashes"]:
                if event["type"] == "BlockStored":
                    assert name not in self.held
                    assert event["parent_block_hash"] is None or event["parent_block_hash"] in self.held
                    self.held[name] = event
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
    events = KvEvents("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "kv", PAGE_TOKENS)
    llm.loop.call(lambda: llm.engine.watch(events)).result()
    stop = llm.loop.observe(events.flush)
    yield events
    stop()
    events.close()


def test_a_router_knows_what_the_cache_holds(llm: LLM, events: KvEvents) -> None:
    router = Router(events)
    router.listen()
    prompts = [[1000 + number + index % (90 + number) for index in range(200)] for number in range(12)]
    for prompt in prompts:
        llm.generate(prompt, ONE, use_tqdm=False)
    router.listen()
    assert llm.cache_stats().evicted_pages
    assert all(len(event["token_ids"]) == event["block_size"] == PAGE_TOKENS for event in router.held.values())
    told = {tuple(event["token_ids"]) for event in router.held.values()}
    assert tuple(prompts[-1][:PAGE_TOKENS]) in told
    idle = llm.cache_stats().groups[0].idle
    tails = len({tuple(prompt) for prompt in prompts})  # at most one short page for each
    assert idle - tails <= len(router.held) <= idle
    llm.reset_prefix_cache()
    llm.generate([7] * 64, ONE, use_tqdm=False)  # events go out with a step
    router.listen()
    assert {tuple(event["token_ids"]) for event in router.held.values()} == {(7,) * PAGE_TOKENS}
    assert router.numbers == list(range(len(router.numbers)))
    router.close()


def test_what_was_missed_is_replayed(llm: LLM, events: KvEvents) -> None:
    llm.generate([5] * 100, ONE, use_tqdm=False)
    llm.generate([6] * 100, ONE, use_tqdm=False)
    router = Router(events)
    dealer = router.context.socket(zmq.DEALER)
    dealer.connect(events.replay_endpoint)
    dealer.send_multipart([b"", (0).to_bytes(8, "big")])
    while True:
        assert dealer.poll(5000)
        _, number, payload = dealer.recv_multipart()
        if number == END_OF_REPLAY:
            break
        router.take(payload)
    assert {tuple(event["token_ids"]) for event in router.held.values()} == {(5,) * 32, (6,) * 32}
    router.close()


def test_names_of_pages_are_the_same_everywhere_and_differ_by_what_decides_them() -> None:
    def name(namespace: Namespace, *pages: list[int]) -> bytes:
        node: Node = Root(namespace)
        for page in pages:
            node = Node(node, token_key(page), 0)
        return BlockHashes().of(node)

    first = name(Namespace(), [1, 2], [3, 4])
    assert first == name(Namespace(), [1, 2], [3, 4])
    others = [
        name(Namespace(), [1, 2, 3, 4]),
        name(Namespace(), [1, 2]),
        name(Namespace(), [1, 3], [3, 4]),
        name(Namespace(salt="x"), [1, 2], [3, 4]),
        name(Namespace(tenant="x"), [1, 2], [3, 4]),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_an_address_that_cannot_be_had_is_a_named_error(events: KvEvents) -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        KvEvents(events.endpoint, None, "", PAGE_TOKENS)


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
