"""The files of the dashboard over HTTP; what they do in a browser is in the folder dashboard."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

import pagoda
from pagoda import LLM
from server.running import MOST_SECONDS, Running, running

FOLDER = Path(pagoda.__file__).parent / "server" / "own" / "dashboard"
FILES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
NAMESPACE = "http://www.w3.org/2000/svg"


def test_the_page_and_its_files_are_served(server: Running) -> None:
    page = server.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in FILES:
        answer = server.get(f"/dashboard/{name}")
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"].startswith(TYPES[name.rsplit(".", 1)[1]])


def test_nothing_else_may_run_on_the_page(server: Running) -> None:
    for path in ("/", "/dashboard/main.js"):
        headers = server.get(path).headers
        rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert rules["default-src"] == rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert rules["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)


@pytest.mark.parametrize("name", FILES)
def test_files_need_only_each_other(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "//" not in re.sub(r"(?m)(^|\s)//.*$", "", text.replace(NAMESPACE, "")), "another host is named"
    named = re.findall(r'(?:src|href)="dashboard/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
    assert set(named) <= set(FILES)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    assert len(text.splitlines()) <= 300


def test_every_file_is_used() -> None:
    text = "".join((FOLDER / name).read_text(encoding="utf-8") for name in FILES)
    assert [name for name in FILES if name != "index.html" and f"/{name}" not in text] == []


def test_unchanged_files_are_not_sent_again(server: Running) -> None:
    first = server.get("/dashboard/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = server.get("/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.get("/dashboard/main.js", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/",
        "/dashboard/nothing.js",
        "/dashboard/../webpage.py",
        "/dashboard/..%2fwebpage.py",
        "/dashboard/%2e%2e/webpage.py",
        "/dashboard/%2e%2e%2fwebpage.py",
        "/dashboard/..%5cwebpage.py",
        "/dashboard//etc/passwd",
        "/dashboard/%2fetc%2fpasswd",
        "/dashboard/main.js%00.html",
        "/dashboard/sub/../main.js",
    ],
)
def test_no_path_leads_elsewhere(server: Running, path: str) -> None:
    """Written to a socket, since clients tidy such paths."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=MOST_SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ")[1] in (b"404", b"400"), answer[:80]


def test_the_page_needs_no_key_and_its_data_does(llm: LLM) -> None:
    with running(llm, api_key=("secret",)) as server:
        assert server.get("/").status_code == 200
        assert server.get("/dashboard/main.js").status_code == 200
        for path in ("/v1/kv/events", "/v1/kv/tree", "/v1/kv/status", "/v1/models"):
            assert server.get(path).status_code == 401
