"""Tells requests to this machine's own name from those to another name that leads here.

A page from elsewhere can have its own name lead to this machine (DNS rebinding): its requests come from this machine
too, and its browser takes the answers for its own, but says in a header under which name it asks.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from pagoda.errors import HttpError

if TYPE_CHECKING:
    from starlette.datastructures import Headers

HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:\d*)?", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(headers: Headers) -> None:
    """Raises HttpError 403 for a request to another name than this machine's."""
    for value in headers.getlist("host"):
        found = HOST.fullmatch(value)
        if found is None or not is_loopback(found["host"].strip("[]")):
            raise HttpError(
                403,
                "Without API keys only this machine is served, and the header host does not name it; "
                "ask for localhost or 127.0.0.1, or start the server with --api-key.",
                code="not_loopback",
            )
