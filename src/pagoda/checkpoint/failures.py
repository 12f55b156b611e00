"""Whatever goes wrong while a checkpoint is loaded, as a ModelError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pagoda.errors import CorruptCheckpointError, ModelError, PagodaError

MAX_MESSAGE_LENGTH = 500


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Inside of it other errors than Pagoda's own become ones that name `what`."""
    try:
        yield
    except PagodaError:
        raise
    except MemoryError as error:
        raise ModelError(f"{what} cannot be loaded: there is not enough memory.") from error
    except Exception as error:
        raise CorruptCheckpointError(f"{what} cannot be loaded: {described(error)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise CorruptCheckpointError(f"{what} cannot be loaded: {described(error)}") from error


def described(error: BaseException) -> str:
    """In one line."""
    message = " ".join(str(error)[: 2 * MAX_MESSAGE_LENGTH].split())[:MAX_MESSAGE_LENGTH]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def is_panic(error: BaseException) -> bool:
    """Whether code in Rust gave up, which is no Exception in Python, though nothing but this call has failed."""
    return type(error).__name__ == "PanicException"
