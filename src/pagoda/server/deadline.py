"""Ends the process in time after it was told to, whatever hangs in it."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

FAILED = 1
GRACE_SECONDS = 3.0  # for a thread of Python to be heard


def end_within(seconds: float) -> None:
    """End the process after so many seconds, and say where its threads are then, unless it has ended by itself."""
    timer = threading.Timer(seconds, _end, [seconds])
    timer.daemon = True
    timer.start()
    # Needs no interpreter, which a thread that never gives it up takes from the timer.
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=2)


def _end(seconds: float) -> None:
    logger.error("The server did not end in %.0f s; it is ended while %s.", seconds, ", ".join(_places()))
    logging.shutdown()
    os._exit(FAILED)


def _places() -> list[str]:
    """Where each other thread is, in words of ours if it is there because of us."""
    frames = sys._current_frames()
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    return [f"{each.name} is in {_place(frames[each.ident])}" for each in others if each.ident in frames]


def _place(frame: FrameType) -> str:
    inner: FrameType | None = frame
    while inner is not None and not str(inner.f_globals.get("__name__")).startswith("pagoda"):
        inner = inner.f_back
    code = (inner or frame).f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}, line {(inner or frame).f_lineno})"
