"""Records of pages whose bytes are drawn from a number: tests put them and know what must come back."""

from random import Random

import numpy as np

from pagoda.cache.prefix.keys import TOKEN_NBYTES, token_key
from pagoda.cache.tiers.base import Put
from pagoda.cache.tiers.record import HEADER_NBYTES, Draft, Kind, Label

NUM_TOKENS = 4
OVERHEAD_NBYTES = HEADER_NBYTES + NUM_TOKENS * TOKEN_NBYTES


def label(number, *, identity=b"model", tenant=b"tenant", group=0):
    """The page that is called `number`, in a chain where each continues the one before."""
    return Label(
        identity=identity.ljust(16),
        namespace=b"namespace".ljust(16),
        tenant=tenant.ljust(8),
        kind=Kind.PAGE,
        group=group,
        name=number.to_bytes(16, "big"),
        parent=max(number - 1, 0).to_bytes(16, "big"),
        num_tokens=NUM_TOKENS * (number + 1),
        tokens=token_key([number] * NUM_TOKENS),
    )


def make_put(number, nbytes=500, *, created_ms=0, **of):
    """Its record has `nbytes` of pages, the same ones at every call."""
    draft = Draft(label(number, **of), nbytes)
    draft.body[:] = np.frombuffer(Random(number).randbytes(nbytes), np.uint8)
    return Put(draft.label.key, draft.seal(created_ms))


def key(number, **of):
    return label(number, **of).key
