"""Bounds how much may come of a request, and how slowly.

Knows bytes and seconds; what becomes of a connection whose request is refused is the connection's.
"""

from __future__ import annotations

from pagoda.errors import HttpError

MOST_HEAD_NBYTES = 64 << 10  # request line, headers and trailers
MOST_FIELDS = 256
LEAST_NBYTES_PER_SECOND = 4 << 10  # of a body
FREE_PIECES = 4096  # of a body, which may be as small as they are
LEAST_PIECE_NBYTES = 64  # of the others, on average
MOST_PIECE_FRAME_NBYTES = 16  # the length of a chunk and its line ends


class Arrival:
    """One request as it comes, from the moment `now`: its head, and then its body."""

    def __init__(self, now: float) -> None:
        self.is_head = True
        self._since = now
        self._field_nbytes = 0
        self._num_fields = 0
        self._received_nbytes = 0
        self._body_nbytes = 0
        self._num_pieces = 0

    def begin_body(self, now: float) -> None:
        self.is_head = False
        self._since = now
        self._received_nbytes = 0

    def due(self, timeout_seconds: float) -> float:
        """When it must be here; a body that comes fast enough may take longer."""
        return self._since + timeout_seconds + self._body_nbytes / LEAST_NBYTES_PER_SECOND

    def was_kept_waiting(self, now: float) -> None:
        """The server did not read on until now."""
        self._since = now

    def add_field(self, nbytes: int) -> None:
        """The request line, a header or a trailer. Raises HttpError 431."""
        self._num_fields += 1
        if self._num_fields > MOST_FIELDS:
            raise HttpError(431, f"There are more than {MOST_FIELDS} headers; send fewer.")
        self._field_nbytes += nbytes
        _check_head(self._field_nbytes)

    def add_body(self, nbytes: int) -> None:
        """A piece of the body. Raises HttpError 400 for too many small ones: each costs as much as a large one."""
        self._body_nbytes += nbytes
        self._num_pieces += 1
        if self._num_pieces > FREE_PIECES + self._body_nbytes // LEAST_PIECE_NBYTES:
            raise HttpError(400, f"The body comes in pieces of less than {LEAST_PIECE_NBYTES} bytes; send larger ones.")

    def add_received(self, nbytes: int) -> None:
        """Bytes of all kinds, also of fields that have not come to their end. Raises HttpError 431."""
        self._received_nbytes += nbytes
        _check_head(self._received_nbytes - self._body_nbytes - MOST_PIECE_FRAME_NBYTES * self._num_pieces)


def _check_head(nbytes: int) -> None:
    if nbytes > MOST_HEAD_NBYTES:
        raise HttpError(431, f"The headers have more than {MOST_HEAD_NBYTES} bytes; send less.")
