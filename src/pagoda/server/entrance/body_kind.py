"""Decides whether a body is JSON: by its headers, or by its looks where no browser has sent it.

curl says that what follows -d is a form, and other programs say nothing. What a browser says counts: what a page may
send anywhere without asking first, a form or plain text, is never taken for JSON.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping

from pagoda.errors import HttpError

GZIP = b"\x1f\x8b"
OF_BROWSERS = ("origin", "sec-fetch-site", "referer")


def check_kind(headers: Mapping[str, str], content: bytes) -> None:
    """Raises HttpError 415 for what is no JSON text as it stands."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if content.startswith(GZIP):
        encoding = encoding or "gzip"
    if encoding not in ("", "identity"):
        raise HttpError(
            415,
            f"The body is compressed ({encoding}), which is not read; send it as it is, without content-encoding.",
            param="content-encoding",
            code="unsupported_encoding",
        )
    kind = headers.get("content-type", "")
    is_by_browser = any(name in headers for name in OF_BROWSERS)
    if not (_is_json(kind) or (_looks_like_json(content) and not is_by_browser)):
        given = f"content-type {kind}" if kind else "no content-type"
        raise HttpError(
            415,
            f"The body has {given}; send JSON with the header content-type: application/json.",
            param="content-type",
            code="unsupported_media_type",
        )


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _looks_like_json(content: bytes) -> bool:
    return content.removeprefix(BOM_UTF8).lstrip()[:1] in (b"{", b"[")
