"""Computes prompts while a server serves, as `pagoda serve --kv-prewarm` asks: after the requests of clients.

A server is ready before; until all is computed its first requests may compute what they share.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from pagoda.commands.prompt_files import NamedPrompt
from pagoda.errors import PagodaError
from pagoda.server.backend.base import Backend
from pagoda.server.backend.warmer import Warmer
from pagoda.server.ground.messages import Scope

logger = logging.getLogger("pagoda.prewarm")

# What is computed at once, and so holds up who comes meanwhile.
PIECE_TOKENS = 512
# So long a piece waits for those who are served.
MOST_WAIT_SECONDS = 5.0
LOOK_SECONDS = 0.05


class Prewarm:
    """Of `prompts`, for each of `tenants`, which share no pages. `is_busy` says whether clients are served."""

    def __init__(
        self, backend: Backend, prompts: Sequence[NamedPrompt], tenants: Sequence[str], is_busy: Callable[[], bool]
    ) -> None:
        self._warmer = Warmer(backend, PIECE_TOKENS, between=self._wait)
        self._works = [(each, tenant) for each in prompts for tenant in tenants]
        self._is_busy = is_busy
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pagoda-prewarm", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End it, wherever it is."""
        self._is_closing.set()
        self._warmer.stop()
        self._thread.join()

    def join(self) -> None:
        """Wait until all is computed."""
        self._thread.join()

    def _run(self) -> None:
        begun, num_tokens, num_computed, num_failed = monotonic(), 0, 0, 0
        for number, (each, tenant) in enumerate(self._works, start=1):
            salt = each.prompt.settings.get("cache_salt") or ""
            try:
                warmed = self._warmer.warm(each.prompt.token_ids, Scope(tenant, salt))
            except PagodaError as error:
                if self._is_closing.is_set():
                    return
                num_failed += 1
                logger.warning("%s cannot be computed in advance: %s", each.name, error)
                continue
            num_tokens += warmed.num_tokens
            num_computed += warmed.num_computed
            fields = {"prompt_tokens": warmed.num_tokens, "computed_tokens": warmed.num_computed}
            logger.info("prewarm %d of %d: %s", number, len(self._works), each.name, extra={"fields": fields})
        told = {
            "prompt_tokens": num_tokens,
            "computed_tokens": num_computed,
            "failed": num_failed,
            "seconds": round(monotonic() - begun, 1),
        }
        logger.info("prewarm done", extra={"fields": told})

    def _wait(self) -> None:
        until = monotonic() + MOST_WAIT_SECONDS
        while self._is_busy() and monotonic() < until and not self._is_closing.wait(LOOK_SECONDS):
            pass
