"""Clients as no library lets them be: plain sockets at a server of the tests' own."""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import Any
from urllib.parse import urlsplit

from server.running import MOST_SECONDS


class Client:
    """One connection."""

    def __init__(self, url: str, receive_nbytes: int | None = None) -> None:
        address = urlsplit(url)
        self._socket = socket.socket()
        if receive_nbytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_nbytes)
        self._socket.settimeout(MOST_SECONDS)
        self._socket.connect((address.hostname, address.port))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_until_ended(self, data: bytes, most_nbytes: int) -> int:
        """Send it again and again; how many bytes the server has taken when it ends the connection."""
        num_sent = 0
        with contextlib.suppress(ConnectionError):
            while num_sent < most_nbytes:
                self._socket.sendall(data)
                num_sent += len(data)
        return num_sent

    def receive(self) -> bytes:
        """All that comes until the server ends the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := self._socket.recv(1 << 16):
                received += piece
        return received

    def receive_some(self) -> bytes:
        return self._socket.recv(1 << 16)

    def has_received(self, within_seconds: float) -> bool:
        """Whether anything, or the end of the connection, comes in this time."""
        return bool(select.select([self._socket], [], [], within_seconds)[0])


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def post(path: str, body: Any, *lines: str) -> bytes:
    content = json.dumps(body).encode()
    return head("POST", path, "Content-Type: application/json", f"Content-Length: {len(content)}", *lines) + content


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
