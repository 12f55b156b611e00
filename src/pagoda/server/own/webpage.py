"""Serves the files of a page from the package: a fixed list, so that no path leads anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Nothing inline and nothing from elsewhere: text of a prompt cannot become a script whatever the page does with it.
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # A browser asks each time and is told that nothing is new: after an upgrade no old file meets a new server.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


class Webpage:
    """The handlers of the page in `folder`, beside this file; its data comes from elsewhere in the API."""

    def __init__(self, folder: str) -> None:
        paths = sorted((Path(__file__).parent / folder).iterdir())
        self._files = {path.name: _read(path) for path in paths if path.suffix in MEDIA_TYPES and path.is_file()}

    async def index(self, request: Request) -> Response:
        """The page itself."""
        return _answer(self._files[INDEX], request)

    async def file(self, name: str, request: Request) -> Response:
        """One of its files."""
        if name not in self._files:
            raise HTTPException(404)
        return _answer(self._files[name], request)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, MEDIA_TYPES[path.suffix], f'"{sha256(content).hexdigest()[:24]}"')


def _answer(file: _File, request: Request) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
