"""Forked processes are as new ones: how they end, what they have of their own, and that they end with their server."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from processes import Forked, run
from server.running import wait_until

LAST = """
import atexit, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: time.sleep(0.1) or print("from a thread")).start()
sys.exit("not so")
"""
OWN = """
import os, random, resource, sys
import numpy
print(__name__, os.environ["MINE"], os.environ.get("PAGODA_POISON_PAGES"), random.random(), numpy.random.rand())
print(sys.argv, os.getcwd(), sorted(vars()), sys.stdin.read())
"""
# Starts one that never ends, and ends as badly as can be.
CRASHES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from processes import Forked
print(Forked(script="import time; time.sleep(600)").pid, flush=True)
os._exit(1)
"""


def test_the_end_is_that_of_a_process() -> None:
    done = run(script=LAST)
    assert (done.returncode, done.stdout, done.stderr) == (1, "from a thread\nat exit\n", "not so\n")
    assert "ZeroDivisionError" in run(script="1 / 0").stderr
    assert run("generate", "--n", "x").returncode == 2


def test_signals_reach_it() -> None:
    process = Forked(script="print(1, flush=True); import time; time.sleep(600)", stdout=subprocess.PIPE)
    assert process.stdout.readline() == "1\n"
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == process.poll() == -signal.SIGTERM
    process.kill()
    process.stdout.close()


def test_it_has_what_is_asked_and_nothing_of_others() -> None:
    first, second = (run("a", script=OWN, environment={"MINE": "1"}).stdout.split("\n") for _ in range(2))
    assert first[0].startswith("__main__ 1 None ")
    assert not {*first[0].split()[3:]} & {*second[0].split()[3:]}, "random numbers of their own"
    names = "['__builtins__', '__doc__', '__loader__', '__name__', '__package__', '__spec__', "
    assert first[1] == f"['-c', 'a'] {Path.cwd()} {names}'numpy', 'os', 'random', 'resource', 'sys'] "
    limit = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    limited = Forked(script=limit, stdout=subprocess.PIPE, open_files=99)
    with limited.stdout:
        assert limited.stdout.read() == "(99, 99)\n"
    assert limited.wait() == 0


def test_it_ends_with_who_started_it_however_that_ends() -> None:
    command = [sys.executable, "-c", CRASHES, str(Path(__file__).parent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    pid = int(done.stdout)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
