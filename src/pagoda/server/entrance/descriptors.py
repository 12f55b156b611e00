"""Knows how many files and connections this process may have open."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

logger = logging.getLogger(__name__)

ENOUGH = 1 << 20
SPARE = 32  # for files that are read and connections that are made meanwhile


def raise_limit() -> int:
    """Raise what is enforced as far as it may be; the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft in (resource.RLIM_INFINITY, wanted) or soft > wanted:
        return ENOUGH if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    logger.info("The limit of open files is raised from %d to %d.", soft, wanted)
    return wanted


def room_for_connections(wanted: int) -> int:
    """Of so many wanted, those that descriptors suffice for."""
    limit = raise_limit()
    room = max(1, limit - sum(1 for _ in Path("/proc/self/fd").iterdir()) - SPARE)
    if room < wanted:
        logger.warning("At most %d connections, of %d: only %d files may be open (ulimit -n).", room, wanted, limit)
    return min(room, wanted)
