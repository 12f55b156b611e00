"""Says where the time of a request went, as those who look after a server are shown it."""

from __future__ import annotations

from typing import Any

from pagoda.analysis.time import RequestTime, verdict


def spent(time: RequestTime, sees_all: bool) -> dict[str, Any]:
    """Seconds by the clock on the `wall`, which add up, seconds of `work` by phase, and the `verdict` in words.

    Whoever does not see all is not told what others had of the same steps, and so no work.
    """
    shown = time if sees_all else time.without_others()
    return {"wall": shown.wall, "work": shown.work, "verdict": verdict(shown)}
