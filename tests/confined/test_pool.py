"""Whatever a function does, its caller hears of it in bounded time, and the next call works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from pagoda.confined import pool
from pagoda.confined.errors import (
    ConfinedError,
    CrashedError,
    FunctionError,
    KilledError,
    NotReadyError,
    NotWantedError,
    TooLargeResultError,
    TooMuchMemoryError,
    TooSlowError,
)
from pagoda.confined.pool import Confined, Preparation
from pagoda.confined.process import seconds_in_children

EVALUATE = "builtins:eval"
NEVER_ENDS = "all(1 for _ in iter(int, 1))"
# One call of native code that never comes back to Python.
NEVER_RETURNS = "10 ** 10 ** 9 and 1"
LONG_SECONDS = 60.0  # of a call that something else has to end


@pytest.fixture(autouse=True)
def others() -> set[int]:
    """Children that other tests have left."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def confined(monkeypatch: pytest.MonkeyPatch) -> Iterator[Confined]:
    monkeypatch.setattr(pool, "WALL_SECONDS", 0.5)
    confined = Confined(memory_nbytes=256 << 20, result_nbytes=1 << 16)
    yield confined
    confined.close()


def evaluate(confined: Confined, code: str, **more: Any) -> Any:
    return confined.call(EVALUATE, code, **{"seconds": LONG_SECONDS} | more)


def num_children(others: set[int]) -> int:
    return len({child.pid for child in psutil.Process().children(recursive=True)} - others)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_results_come_back_and_the_child_is_kept(confined):
    assert evaluate(confined, "{'a': [1, 2.5, None, True, 'é\\ud800']}") == {"a": [1, 2.5, None, True, "é\ud800"]}
    pids = {evaluate(confined, "__import__('os').getpid()") for _ in range(3)}
    assert len(pids) == 1 and pids != {os.getpid()}


def test_arguments_may_be_large(confined):
    assert confined.call("builtins:len", b"x" * (8 << 20), seconds=LONG_SECONDS) == 8 << 20


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (NEVER_ENDS, TooSlowError, "longer than 0.2 s"),
        (NEVER_RETURNS, TooSlowError, "longer than 0.2 s"),
        ("__import__('time').sleep(1000)", TooSlowError, "longer than 0.2 s"),
        ("__import__('signal').pause()", TooSlowError, "longer than 0.2 s"),
        ("[0] * 10**9", TooMuchMemoryError, "memory"),
        ("bytearray(10**9)", TooMuchMemoryError, "memory"),
        ("__import__('os').abort()", CrashedError, "crashed"),
        ("__import__('os')._exit(0)", CrashedError, "crashed"),
        ("__import__('ctypes').string_at(0)", CrashedError, "crashed"),
        ("__import__('os').close(1) or exit('the reason')", CrashedError, "the reason"),
        ("'x' * 70_000", TooLargeResultError, "65536 bytes"),
        ("1 / 0", FunctionError, "division by zero"),
        ("object()", CrashedError, "JSON"),
        ("__import__('os').write(__import__('os').memfd_create('a'), b'a')", FunctionError, "too large"),
    ],
)
def test_every_end_has_its_error_and_the_next_call_works(confined, code, error, message, others):
    with pytest.raises(ConfinedError, match=message) as caught:
        evaluate(confined, code, seconds=0.2)
    assert type(caught.value) is error
    assert evaluate(confined, "1 + 1") == 2
    assert num_children(others) == 1


def test_what_a_function_raises_is_named(confined):
    with pytest.raises(FunctionError) as caught:
        confined.call("builtins:int", "x" * 9000, seconds=1)
    assert caught.value.kind == "ValueError" and len(str(caught.value)) < 5000
    with pytest.raises(FunctionError) as caught:
        confined.call("nowhere:function", None, seconds=1)
    assert caught.value.kind == "ModuleNotFoundError"


@pytest.mark.parametrize(
    "reply",
    [b"", b"{", b"[]", b'["error", 1, false]', b'["error", {}, false]', b"[" * 60_000, b"\xff", b'["result"]'],
    ids=ascii,
)
def test_a_child_that_was_taken_over_may_answer_anything(confined, reply):
    """Replies leave by the descriptor after the standard ones and that of requests."""
    frame = len(reply).to_bytes(8, "little") + reply
    with pytest.raises(CrashedError, match="cannot be read"):
        evaluate(confined, f"[__import__('os').write(fd, {frame!r}) for fd in (4,)]")
    assert evaluate(confined, "1 + 1") == 2


def test_what_is_printed_is_no_answer_and_does_not_block(confined):
    assert evaluate(confined, "print('x' * 1_000_000) or 5") == 5
    assert evaluate(confined, "__import__('sys').stdin.read()") == ""


def test_memory_that_is_not_given_back_is_not_the_next_calls_loss(confined):
    keep = "setattr(__import__('sys'), 'kept', bytearray(150 << 20)) or __import__('os').getpid()"
    first = evaluate(confined, keep)
    assert evaluate(confined, keep) != first


def test_secrets_and_descriptors_do_not_go_to_the_child(confined, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_KEY", "x")
    file = tmp_path / "secret"
    file.touch()
    secret = os.open(file, os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        assert evaluate(confined, "__import__('os').environ.get('SECRET_KEY')") is None
        opened = evaluate(
            confined, "[str(fd.resolve()) for fd in __import__('pathlib').Path('/proc/self/fd').iterdir()]"
        )
        assert len(opened) < 10 and str(file) not in opened
    finally:
        os.close(secret)


def test_a_child_lasts(confined):
    pids = {evaluate(confined, "__import__('os').getpid()") for _ in range(3000)}
    assert len(pids) == 1


def test_a_call_ends_when_nobody_wants_it(confined, others):
    wanted = threading.Event()
    wanted.set()
    threading.Timer(0.2, wanted.clear).start()
    with pytest.raises(NotWantedError):
        evaluate(confined, NEVER_ENDS, is_wanted=wanted.is_set)
    assert not num_children(others)


def test_calls_wait_for_their_turn_as_long_as_they_are_wanted(confined, others):
    wanted = threading.Event()
    wanted.set()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(evaluate, confined, NEVER_ENDS, is_wanted=wanted.is_set)
        wait_until(lambda: num_children(others))
        with pytest.raises(NotWantedError):
            evaluate(confined, "1", is_wanted=lambda: False)
        second = threads.submit(evaluate, confined, "2")
        wanted.clear()
        assert second.result() == 2
        with pytest.raises(NotWantedError):
            first.result()


@pytest.mark.parametrize("most", [1, 3])
def test_many_threads_may_call(most, others):
    confined = Confined(memory_nbytes=256 << 20, num_children=most)
    codes = [str(number) if number % 5 else "__import__('os').abort()" for number in range(40)]

    def result(code: str) -> Any:
        try:
            return evaluate(confined, code)
        except CrashedError:
            return None

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(result, codes)) == [number if number % 5 else None for number in range(40)]
    assert num_children(others) <= most
    confined.close()
    assert not num_children(others)


def test_closing_ends_calls_in_progress_and_waiting(confined, others):
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(evaluate, confined, NEVER_RETURNS) for _ in range(3)]
        wait_until(lambda: num_children(others))
        confined.close()
        for call in calls:
            with pytest.raises(NotWantedError):
                call.result()
    assert not num_children(others)
    with pytest.raises(NotWantedError):
        evaluate(confined, "1")
    confined.close()


def test_a_pool_that_is_forgotten_ends_its_children(others):
    confined = Confined(memory_nbytes=256 << 20)
    evaluate(confined, "1")
    assert num_children(others)
    del confined
    assert not num_children(others)


def test_a_child_that_died_between_calls_is_replaced(confined):
    pid = evaluate(confined, "__import__('os').getpid()")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid))
    assert evaluate(confined, "__import__('os').getpid()") != pid


def test_a_call_whose_child_is_killed_is_made_once_more(confined, tmp_path):
    die = "__import__('os').kill(__import__('os').getpid(), 9)"
    with pytest.raises(KilledError, match="killed by the system"):
        evaluate(confined, die)
    folder = f"__import__('pathlib').Path({str(tmp_path / 'was here')!r})"
    assert evaluate(confined, f"5 if {folder}.exists() else {folder}.mkdir() or {die}") == 5


def test_the_child_ignores_interrupts_and_ends_when_it_is_told(confined):
    pid = evaluate(confined, "__import__('os').getpid()")
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)
    assert evaluate(confined, "__import__('os').getpid()") == pid
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: has_ended(pid))


def test_the_child_goes_by_its_own_signals_whatever_the_parent_does_with_them(confined):
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGPROF, signal.SIGTERM})
    try:
        with pytest.raises(TooSlowError):
            evaluate(confined, NEVER_ENDS, seconds=0.1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGPROF, signal.SIGTERM})
        signal.signal(signal.SIGPROF, before)


def test_a_process_that_cannot_be_started_is_an_error_of_this_call(confined, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NotReadyError, match="another process"):
        evaluate(confined, "1")
    monkeypatch.undo()
    assert evaluate(confined, "1") == 1


PARENT = """
import sys, threading
from pagoda.confined.pool import Confined, Preparation
confined = Confined(memory_nbytes=256 << 20)
print(confined.call("builtins:eval", "__import__('os').getpid()", seconds=9), flush=True)
code = sys.argv[1]
if code:
    threading.Thread(target=confined.call, args=("builtins:eval", code), kwargs={"seconds": 600}, daemon=True).start()
sys.stdin.read()
"""


@pytest.mark.parametrize("code", ["", NEVER_ENDS, NEVER_RETURNS], ids=["idle", "python", "native"])
@pytest.mark.parametrize("how", ["killed", "ends"])
def test_no_child_outlives_its_parent(code, how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        child = int(parent.stdout.readline())
        if code:
            wait_until(lambda: psutil.Process(child).cpu_times().user > 0.2)
        if how == "killed":
            parent.kill()
        else:
            parent.stdin.close()
        parent.wait(timeout=30)
    wait_until(lambda: has_ended(child))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_children_of_its_own(confined):
    pid = evaluate(confined, "__import__('os').getpid()")
    reading, writing = os.pipe()
    twin = os.fork()
    if not twin:
        other = evaluate(confined, "__import__('os').getpid()")
        os.write(writing, str(other).encode())
        os._exit(0)
    assert os.waitpid(twin, 0)[1] == 0
    other = int(os.read(reading, 100))
    assert other != pid
    wait_until(lambda: has_ended(other))
    assert evaluate(confined, "__import__('os').getpid()") == pid
    os.close(reading)
    os.close(writing)


def test_a_child_needs_little_to_start(confined):
    loaded = evaluate(confined, "sorted(__import__('sys').modules)")
    assert not {"torch", "transformers", "numpy"} & set(loaded)
    assert Path(evaluate(confined, "__import__('pagoda').__file__")).parent.name == "pagoda"


PREPARED = Preparation("builtins:list", lambda: [1, 2, 3], seconds=LONG_SECONDS)


def test_what_is_prepared_stays_in_the_child_and_is_made_again_in_the_next():
    confined = Confined(memory_nbytes=256 << 20, preparation=PREPARED)
    assert confined.call("builtins:list.append", 4, seconds=1) is None
    assert confined.call("builtins:list.count", 4, seconds=1) == 1
    with pytest.raises(TooSlowError):
        confined.call("builtins:list.extend", _Endless(), seconds=0.1)
    assert confined.call("builtins:list.count", 4, seconds=1) == 0
    confined.close()


class _Endless:
    """Arrives as an iterator without an end."""

    def __reduce__(self) -> tuple[Any, ...]:
        return iter, (int, 1)


@pytest.mark.parametrize(
    ("function", "argument", "is_final"),
    [("builtins:int", "x", True), (EVALUATE, NEVER_ENDS, False), (EVALUATE, "__import__('os').abort()", False)],
)
def test_a_child_that_cannot_be_prepared_is_the_error_of_every_call(function, argument, is_final, others):
    preparation = Preparation(function, lambda: argument, seconds=0.1)
    confined = Confined(memory_nbytes=256 << 20, preparation=preparation)
    for _ in range(2):
        with pytest.raises(NotReadyError) as caught:
            confined.call("builtins:str", 1, seconds=1)
        assert caught.value.is_final is is_final
    assert not num_children(others)


def test_a_call_that_takes_long_gives_way_to_others_and_its_child_is_replaced(confined):
    own = "__import__('os').getpriority(0, 0)"
    usual = evaluate(confined, own)
    busy = f"next((nice for nice in iter(lambda: {own}, None) if nice > {usual}), None)"
    assert evaluate(confined, busy) > usual
    assert evaluate(confined, own) == usual
    urgent = Confined(memory_nbytes=256 << 20, gives_way=False)
    assert evaluate(urgent, f"sum(range(10**8)) and {own}") == usual
    urgent.close()


def test_what_is_prepared_wears_no_child_out():
    confined = Confined(
        memory_nbytes=256 << 20, preparation=Preparation("builtins:bytearray", lambda: 150 << 20, LONG_SECONDS)
    )
    for number in range(3):
        assert confined.call("builtins:bytearray.append", 1, seconds=LONG_SECONDS) is None
        assert confined.call("builtins:bytearray.count", b"\1", seconds=LONG_SECONDS) == number + 1
    confined.close()


def test_what_children_take_of_processors_is_known_to_who_asked(confined):
    before = seconds_in_children()
    evaluate(confined, "1 + 1")
    evaluate(confined, "sum(range(20_000_000)) and 0")
    assert seconds_in_children() > before
    others = []
    thread = threading.Thread(target=lambda: others.append(seconds_in_children()))
    thread.start()
    thread.join()
    assert others == [0.0]
