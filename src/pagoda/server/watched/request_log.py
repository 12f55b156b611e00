"""Writes a line for each request that has ended, for `pagoda simulate`: how long it was, and what its pages are called.

Never text or token ids: a name is a digest of all tokens up to the end of a page, and says nothing but where two
requests were the same. Names are made and lines written on a thread of its own; of requests that come faster than a
disk takes them the last ones are lost, and nobody waits.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from queue import Full, Queue
from stat import S_ISREG
from time import monotonic, time
from typing import Any, BinaryIO

import orjson

from pagoda.analysis.traces.request_log import FORMAT
from pagoda.cache.prefix.names import PageNames
from pagoda.cache.prefix.namespace import Namespace
from pagoda.errors import ConfigError
from pagoda.server.ground.messages import Job, Scope

logger = logging.getLogger(__name__)

MOST_WAITING = 1024  # requests
CLOSE_SECONDS = 5.0
MOST_LINE_NBYTES = 64 << 20
SALT_DIGEST_NBYTES = 8


@dataclass(frozen=True)
class _Ended:
    """What is known of a request when it ends; the names of its pages are still to be made."""

    fields: dict[str, Any]
    namespace: Namespace
    prompt: list[int]
    output: list[int]


class RequestLog:
    """Appends to `file` what `add` is told; pages of `page_tokens` are called by `names`.

    Raises ConfigError for a file that cannot be written, or holds something else.
    """

    def __init__(self, file: Path, names: PageNames, page_tokens: int) -> None:
        self._file = file
        self._names = names
        self._page_tokens = page_tokens
        self._stream = _opened(file)
        self._waiting: Queue[_Ended | None] = Queue(MOST_WAITING)
        self._has_failed = False
        self._thread = threading.Thread(target=self._write, name="pagoda-request-log", daemon=True)
        self._thread.start()

    def add(self, job: Job, scope: Scope) -> None:
        """A job of `scope` has ended. Nothing is told of one of which nothing was computed."""
        if job.num_cached_tokens is None:
            return
        namespace = Namespace(scope.cache_salt, tenant=scope.tenant)
        ended = _Ended(_fields(job, scope), namespace, job.prompt, job.first_output_tokens)
        with suppress(Full):
            self._waiting.put_nowait(ended)

    def close(self) -> None:
        """Write what is known by now, if that goes on."""
        with suppress(Full):
            self._waiting.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _write(self) -> None:
        while (ended := self._waiting.get()) is not None:
            try:
                line = orjson.dumps(self._line(ended)) + b"\n"
                # What a full disk has cut off must not spoil the next line.
                _write_all(self._stream, b"\n" + line if self._has_failed else line)
                self._has_failed = False
            except OSError as error:
                if not self._has_failed:
                    logger.warning(
                        "The request log %s cannot be written (%s): requests are left out", self._file, error
                    )
                self._has_failed = True
            except Exception:
                logger.exception("A request could not be logged")
        self._stream.close()

    def _line(self, ended: _Ended) -> dict[str, Any]:
        """With names of the pages of all tokens that were computed: the last of an answer never is."""
        size, prompt = self._page_tokens, ended.prompt
        names = self._hex(ended.namespace, [*prompt, *ended.output[:-1]])
        num_whole = (len(prompt) + max(len(ended.output) - 1, 0)) // size
        prompt_tail = None
        if len(prompt) % size:
            prompt_tail = self._hex(ended.namespace, prompt)[-1]
        return {
            "log": FORMAT,
            **ended.fields,
            "page_tokens": size,
            "pages": names[:num_whole],
            "prompt_tail": prompt_tail,
            "tail": next(islice(names, num_whole, None), None),
        }

    def _hex(self, namespace: Namespace, tokens: list[int]) -> list[str]:
        return [name.hex() for name in self._names.of_tokens(namespace, tokens, with_tail=True)]


def _fields(job: Job, scope: Scope) -> dict[str, Any]:
    metrics = job.metrics
    reason = "error" if job.error is not None else next((each for each in job.finish_reasons if each), "abort")
    salt = scope.cache_salt and blake2b(scope.cache_salt.encode(), digest_size=SALT_DIGEST_NBYTES).hexdigest()
    return {
        "arrival_ms": round((time() - (monotonic() - metrics.arrival)) * 1e3),
        "input_length": len(job.prompt),
        "output_length": len(job.first_output_tokens),
        "samples": job.params.n,
        "tenant": scope.tenant,
        "salt": salt or None,
        "cached_tokens": job.num_cached_tokens,
        "cached_tokens_by_tier": {} if job.cache_report is None else dict(job.cache_report.read_tokens),
        "ttft_ms": _milliseconds(metrics.ttft_seconds),
        "e2e_ms": _milliseconds(metrics.e2e_seconds),
        "finish_reason": str(reason),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _opened(file: Path) -> BinaryIO:
    """`file`, to be added to; only its owner may read a new one."""
    try:
        stream = os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b", buffering=0)
    except OSError as error:
        raise ConfigError(f"request_log {file} cannot be written: {error.strerror}; name another file.") from error
    if S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.seek(0, os.SEEK_END):
        stream.seek(0)
        if not _is_log(stream.readline(MOST_LINE_NBYTES)):
            stream.close()
            raise ConfigError(f"request_log {file} holds something else than a request log; name another file.")
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            _write_all(stream, b"\n")
    return stream


def _is_log(line: bytes) -> bool:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and value.get("log") == FORMAT


def _write_all(stream: Any, data: bytes) -> None:
    while data:
        data = data[stream.write(data) :]
