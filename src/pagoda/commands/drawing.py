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


def check_kind(file: Path) -> None:
    """Raise ConfigError for a kind of file that nothing can be drawn into."""
    figure = pyplot().figure()
    kinds = figure.canvas.get_supported_filetypes()
    pyplot().close(figure)
    if file.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(f"{file} is no kind of picture; name a .png, .svg or .pdf.")


def save(figure: Any, file: Path) -> None:
    """Write a picture in the format that the ending of `file` says, and close it."""
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be written: {error}; name a .png, .svg or .pdf.") from error
    finally:
        pyplot().close(figure)
