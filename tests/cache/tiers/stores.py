"""Records for tests of tiers, and the stores that they talk to badly."""

import random
import socket
import threading
from contextlib import contextmanager

import numpy as np

from pagoda.cache.tiers.base import Put
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Kind, Label


def put(number, nbytes=1000, created_ms=1):
    """A record of `nbytes` altogether, and its key."""
    digest = number.to_bytes(16, "little")
    label = Label(
        *(digest, digest, bytes(8), Kind.PAGE, 0, digest, bytes(16), 4),
        tokens=number.to_bytes(4, "little") * 4,
    )
    draft = Draft(label, nbytes - HEADER_NBYTES - len(label.tokens))
    draft.body[:] = np.frombuffer(random.Random(number).randbytes(draft.body.nbytes), np.uint8)
    return Put(label.key, draft.seal(created_ms))


@contextmanager
def silent_server():
    """The port of a server that accepts and never answers."""
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in accepted:
                each.close()
