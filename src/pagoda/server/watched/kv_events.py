"""Tells routers which pages this engine holds, over ZMQ, in vLLM's format (`vllm.distributed.kv_events`).

A batch for each step in which something changed: three frames, the topic, a number of 8 bytes, and msgpack of
[time, events, rank]. Who has missed some asks a second socket for all from a number on. Only whole pages of the group
that keeps most are told of; tails of ended sequences are of use here alone.
"""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue
from threading import Thread
from time import time
from typing import Any

import msgspec
import zmq

from pagoda.cache.prefix.held import Reason
from pagoda.cache.prefix.keys import TOKEN_NBYTES, key_tokens
from pagoda.cache.prefix.names import PageNames
from pagoda.cache.prefix.tree import Node
from pagoda.errors import ConfigError

DEVICE = "GPU"  # what routers call the tier that attention reads, whatever the device is
MOST_KEPT_BATCHES = 10_000
MOST_WAITING_MESSAGES = 100_000  # of one subscriber, or of one replay; beyond it ZMQ drops them, and vLLM has the same
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
POLL_MILLISECONDS = 50
HASH_NBYTES = 8  # of a name, as vLLM's hashes of blocks have


class KvEvents:
    """Watches a prefix tree on the engine's thread, and publishes on one of its own."""

    def __init__(
        self, endpoint: str, replay_endpoint: str | None, topic: str, page_tokens: int, names: PageNames
    ) -> None:
        """Raises ConfigError if the endpoints cannot be bound."""
        self._page_tokens = page_tokens
        self._topic = topic.encode()
        self._names = names
        self._events: list[dict[str, Any]] = []
        self._batches: SimpleQueue[bytes | None] = SimpleQueue()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=MOST_KEPT_BATCHES)
        self._context = zmq.Context()
        self._publisher = self._bound(zmq.PUB, endpoint)
        self._replies = None if replay_endpoint is None else self._bound(zmq.ROUTER, replay_endpoint)
        self._thread = Thread(target=self._run, name="pagoda-kv-events", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it publishes, with the port that was found if any was wanted."""
        return str(self._publisher.getsockopt_string(zmq.LAST_ENDPOINT))

    @property
    def replay_endpoint(self) -> str | None:
        return None if self._replies is None else str(self._replies.getsockopt_string(zmq.LAST_ENDPOINT))

    def stored(self, node: Node) -> None:
        assert node.parent is not None
        if len(node.key) != self._page_tokens * TOKEN_NBYTES:
            return
        parent = None if node.parent.parent is None else self._number(node.parent)
        self._events.append(
            {
                "type": "BlockStored",
                "block_hashes": [self._number(node)],
                "parent_block_hash": parent,
                "token_ids": key_tokens(node.key),
                "block_size": self._page_tokens,
                "lora_id": None,
                "medium": DEVICE,
                "lora_name": None,
            }
        )

    def removed(self, node: Node, reason: Reason) -> None:  # noqa: ARG002
        if len(node.key) == self._page_tokens * TOKEN_NBYTES:
            event = {"type": "BlockRemoved", "block_hashes": [self._number(node)], "medium": DEVICE}
            self._events.append(event)

    def flush(self) -> None:
        """After each step: send what has changed in it."""
        if self._events:
            self._batches.put(msgspec.msgpack.encode([time(), self._events, 0]))
            self._events = []

    def close(self) -> None:
        self._batches.put(None)
        self._thread.join()
        self._context.destroy(linger=0)

    def _number(self, node: Node) -> int:
        return int.from_bytes(self._names.of(node)[:HASH_NBYTES], "big")

    def _bound(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, MOST_WAITING_MESSAGES)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"{endpoint} cannot be bound for KV events: {error}; give another.") from error
        return socket

    def _run(self) -> None:
        number = 0
        while True:
            self._answer_replays()
            try:
                batch = self._batches.get(timeout=POLL_MILLISECONDS / 1000)
            except Empty:
                continue
            if batch is None:
                return
            self._kept.append((number, batch))
            self._publisher.send_multipart([self._topic, number.to_bytes(8, "big"), batch])
            number += 1

    def _answer_replays(self) -> None:
        """Send what is kept from the number that was asked for, then the end marker."""
        while self._replies is not None and self._replies.poll(0):
            client, *_, start = self._replies.recv_multipart()  # sockets of some kinds put an empty frame between
            first = int.from_bytes(start, "big")
            for number, batch in self._kept:
                if number >= first:
                    self._replies.send_multipart([client, b"", number.to_bytes(8, "big"), batch])
            self._replies.send_multipart([client, b"", END_OF_REPLAY, b""])
