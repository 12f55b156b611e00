"""What a shared store costs: a local redis-server over TCP and a Unix socket, beside redis-py alone, and moto's S3.

    python benchmarks/tier_remote.py

Needs redis-server on the PATH. Every figure is a median, of turns that take turns with those they are compared to.
"""

from __future__ import annotations

import logging
import os
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pagoda.cache.tiers.base import Put, Tier, TierSettings
from pagoda.cache.tiers.guarded import GuardedTier
from pagoda.cache.tiers.objects import ObjectTier
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Kind, Label
from pagoda.cache.tiers.redis import RedisTier

KIB = 1 << 10
SIZES = (64 * KIB, 384 * KIB, 1024 * KIB)
BATCH_NBYTES = 12 << 20
NUM_TURNS = 9
NUM_KEYS = 1000


def make_put(number: int, nbytes: int) -> Put:
    name = number.to_bytes(16, "big")
    label = Label(bytes(16), bytes(16), bytes(8), Kind.PAGE, 0, name, bytes(16), 4, tokens=bytes(16))
    draft = Draft(label, nbytes)
    draft.body[:] = np.frombuffer(os.urandom(nbytes), np.uint8)
    return Put(label.key, draft.seal(0))


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Its URLs: over TCP, and over a Unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    with subprocess.Popen([*command, "--unixsocket", str(folder / "redis.sock")], stdout=subprocess.DEVNULL) as process:
        while not (folder / "redis.sock").exists():
            time.sleep(0.05)
        try:
            yield f"redis://127.0.0.1:{port}", f"unix://{folder}/redis.sock"
        finally:
            process.terminate()


def medians(calls: dict[str, Callable[[], object]], before: Callable[[], object]) -> dict[str, float]:
    """Seconds of each call, `before` which something happens that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(NUM_TURNS):
        for name, call in calls.items():
            before()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def show(title: str, nbytes: int, num_records: int, seconds: dict[str, float]) -> None:
    figures = [
        f"{name} {each / num_records * 1e3:.2f} ms ({nbytes * num_records / each / 1e6:,.0f} MB/s)"
        for name, each in seconds.items()
    ]
    print(f"{title} of {nbytes // KIB:,} KiB: {', '.join(figures)}")


def compare(tier: RedisTier, guard: Tier, records: Sequence[Put]) -> None:
    client = tier._client
    keys, nbytes = [record.key for record in records], records[0].record.nbytes

    def set_alone() -> None:
        for record in records:
            client.set(record.key, record.record)

    puts = {"alone": set_alone, "tier": lambda: tier.put(records), "guarded": lambda: guard.put(records)}
    show("  put", nbytes, len(records), medians(puts, client.flushall))
    set_alone()
    tier.put(records)
    gets = {
        "alone": lambda: [client.get(key) for key in keys],
        "tier": lambda: tier.get(keys),
        "guarded": lambda: guard.get(keys),
    }
    show("  get", nbytes, len(records), medians(gets, lambda: None))


def compare_prefixes(tier: RedisTier) -> None:
    records = [make_put(number, 64) for number in range(NUM_KEYS)]
    tier._client.flushall()
    tier.put(records)
    keys = [record.key for record in records]

    def pipelined() -> None:
        with tier._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.exists(key)
            pipeline.execute()

    seconds = medians({"pipelined EXISTS": pipelined, "script": lambda: tier.num_leading(keys)}, lambda: None)
    print(f"  prefix of {NUM_KEYS:,} keys: " + ", ".join(f"{name} {s * 1e3:.2f} ms" for name, s in seconds.items()))


def measure_redis(url: str) -> None:
    print(url.partition(":")[0])
    settings = TierSettings(where=url, timeout_seconds=30)
    tier = RedisTier.open(settings)
    guard = GuardedTier("remote", lambda: RedisTier.open(settings))
    for nbytes in SIZES:
        # So that the whole record has a size that people would choose.
        body_nbytes = nbytes - HEADER_NBYTES - 16
        compare(tier, guard, [make_put(number, body_nbytes) for number in range(BATCH_NBYTES // nbytes)])
    compare_prefixes(tier)
    guard.close()
    tier.close()


def smoke_s3() -> None:
    """Shows that it works: moto is a test double, whose rates say nothing of a store."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # every request otherwise
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
    tier = ObjectTier.open(TierSettings(where=f"s3://bucket/pages?endpoint={endpoint}", timeout_seconds=30))
    records = [make_put(number, 1024 * KIB) for number in range(8)]
    keys = [record.key for record in records]
    for name, call in {"put": lambda: tier.put(records), "get": lambda: tier.get(keys)}.items():
        start = time.perf_counter()
        call()
        show(f"s3 (moto) {name}", records[0].record.nbytes, len(records), {"once": time.perf_counter() - start})
    tier.close()
    server.stop()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as urls:
        for url in urls:
            measure_redis(url)
    smoke_s3()


if __name__ == "__main__":
    main()
