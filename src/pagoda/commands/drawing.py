"""Pictures with matplotlib, which is an extra: written, or refused with an error that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pagoda.errors import ConfigError


def pyplot() -> Any:
    """matplotlib's interface, without a screen. ConfigError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'pagoda-kv[plot]'.") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, file: Path) -> None:
    """Write a picture in the format that the ending of `file` says."""
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be written: {error}") from error
