"""Stores that tests talk to: servers of their own, good ones and one that never answers."""

import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from uuid import uuid4

import pytest


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def redis_server(folder, *options, port=None):
    """The URL of a fresh server, which keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server on the PATH")
    port = port or free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *options]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(port, process)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()


def _wait_for(port, process):
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError("redis-server did not start; its log is in redis.log")


@contextmanager
def s3_server():
    """The endpoint of a server that speaks the protocol of S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def new_bucket(endpoint):
    """The address of an empty bucket; keys come from the environment."""
    name = f"bucket-{uuid4()}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
    return f"s3://{name}/some/folder?endpoint={endpoint}"


@contextmanager
def silent_server():
    """The port of a server that reads what it is sent and never answers."""

    def answer(client):
        with client:
            while client.recv(1 << 16):
                pass

    with _accepting(answer) as port:
        yield port


@contextmanager
def cutting_proxy(port, num_bytes):
    """The port of a server that passes on what the one at `port` answers, and ends connections after `num_bytes`."""

    def answer(client):
        with client, socket.create_connection(("127.0.0.1", port)) as store:
            thread = threading.Thread(target=_pass_on, args=(client, store))
            thread.start()
            left = num_bytes
            while left and (data := store.recv(min(left, 1 << 16))):
                client.sendall(data)
                left -= len(data)
            client.shutdown(socket.SHUT_RDWR)
            thread.join()

    with _accepting(answer) as here:
        yield here


def _pass_on(client, store):
    with suppress(OSError):
        while data := client.recv(1 << 16):
            store.sendall(data)
        store.shutdown(socket.SHUT_RDWR)


@contextmanager
def _accepting(answer):
    """The port of a server that gives each connection to `answer`, in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work(client):
            with suppress(OSError):
                answer(client)

        def accept():
            clients, threads = [], []
            with suppress(OSError):
                while True:
                    clients.append(server.accept()[0])
                    threads.append(threading.Thread(target=work, args=(clients[-1],)))
                    threads[-1].start()
            for client in clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
