"""What tells requests of this machine's own programs from those that web pages make.

A page from elsewhere can have its own name lead to this machine (DNS rebinding), or post here from another origin: its
requests come from this machine too, but the browser says in headers under which name, and for whom.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from pagoda.errors import HttpError

if TYPE_CHECKING:
    from starlette.datastructures import Headers

PLACE = r"(?P<host>\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:\d*)?"
HOST = re.compile(PLACE, re.IGNORECASE)
ORIGIN = re.compile(f"https?://{PLACE}", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_names(headers: Headers) -> None:
    """Raises HttpError 403 for a request to another name than this machine's, or from a page of another."""
    for name, form in (("host", HOST), ("origin", ORIGIN)):
        for value in headers.getlist(name):
            found = form.fullmatch(value)
            if found is None or not is_loopback(found["host"].strip("[]")):
                raise HttpError(
                    403,
                    f"Without API keys only this machine is served, and the header {name} does not name it; "
                    "ask for localhost or 127.0.0.1, or start the server with --api-key.",
                    code="not_loopback",
                )
