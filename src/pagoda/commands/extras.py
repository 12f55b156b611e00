"""What a command needs that does not come with every installation."""

from __future__ import annotations

from importlib.util import find_spec

from pagoda.errors import ConfigError


def need(*modules: str, extra: str = "server") -> None:
    """Raise ConfigError, which says how to get it, if one of `modules` is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{missing[0]} is not installed; get it with: pip install 'pagoda-kv[{extra}]'.")
