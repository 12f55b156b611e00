"""Decides which web pages may call the server, by what browsers say in headers (CORS).

A browser sends some requests for any page, and only keeps the answer from one that may not read it; before others it
asks, which is a preflight. A server without keys does nothing at all for pages that may not call. Pages send no cookies
here, so a key has to be in the page's hands. Knows headers; which name a request came under is looked at elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pagoda.errors import HttpError
from pagoda.server.ground.loopback import is_loopback

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from pagoda.server.ground.options import ServerOptions

ANY = "*"
OWN = re.compile(r"https?://(\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[^\s:/@\[\]]+))(:\d*)?", re.IGNORECASE)
FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(\s*,\s*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
USUAL_HEADERS = "authorization, content-type, x-api-key"
MAX_AGE_SECONDS = 600  # Chromium keeps a preflight for two hours at most, Firefox for a day
EXPOSED_HEADERS = "x-request-id, request-id, retry-after, www-authenticate, x-pagoda-ignored"


class Origins:
    """Allows the pages of this machine, where it alone can reach the server, and those that the options name."""

    def __init__(self, options: ServerOptions) -> None:
        self._named = frozenset(options.allowed_origins)
        self._has_own = is_loopback(options.host)
        self._is_keyless = not options.has_keys
        self._is_alone = options.serves_this_machine_alone

    def check(self, headers: Headers, is_page: bool) -> None:
        """Raises HttpError 403 for what a page asks that may not. A link may lead to what `is_page` from anywhere."""
        origins = headers.getlist("origin")
        if ANY in self._named or (origins and all(map(self._allows, origins))):
            return
        if self._is_keyless and origins and (self._is_alone or not all(_is_of(each, headers) for each in origins)):
            raise _refused("the header origin does not name it")
        if self._is_keyless and not is_page and headers.get("sec-fetch-site", "").lower() == "cross-site":
            raise _refused("the header sec-fetch-site says that a page from elsewhere asks")

    def shared(self, headers: Headers) -> dict[str, str]:
        """What every answer has to say so that the page that asked may read it."""
        origin = headers.get("origin", "")
        if not origin:
            return {}
        if not self._allows(origin):
            return {"vary": "origin"}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": EXPOSED_HEADERS,
            "vary": "origin",
        }

    def preflight(self, headers: Headers) -> dict[str, str]:
        """What a browser is told that asks before it sends a request. Raises HttpError 403."""
        if not self._allows(headers.get("origin", "")):
            raise _refused("the header origin names a page from elsewhere")
        wanted = headers.get("access-control-request-headers", "")
        granted = {
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": wanted if FIELD_NAMES.fullmatch(wanted) else USUAL_HEADERS,
            "access-control-max-age": str(MAX_AGE_SECONDS),
        }
        if "access-control-request-private-network" in headers:
            granted["access-control-allow-private-network"] = "true"
        return granted

    def _allows(self, origin: str) -> bool:
        if ANY in self._named or origin.lower() in self._named:
            return True
        found = OWN.fullmatch(origin)
        return self._has_own and found is not None and is_loopback(found["six"] or found["host"])


def _is_of(origin: str, headers: Headers) -> bool:
    """Whether the page is the server's own, by the name that the request came under."""
    return origin.lower().partition("://")[2] == headers.get("host", "").lower()


def is_preflight(method: str, headers: Headers) -> bool:
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _refused(why: str) -> HttpError:
    return HttpError(
        403,
        f"Only pages of this machine are served, and {why}; start the server with --allowed-origins to name others.",
        code="origin_not_allowed",
    )
