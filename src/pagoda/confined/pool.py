"""Runs functions of ours on input that may be hostile, in child processes that can be killed.

    confined = Confined(memory_nbytes=1 << 30)
    answer = confined.call("pagoda.some_module:function", argument, seconds=5.0)

A function is named as "module:function", takes one argument and gives back what JSON can say. The argument crosses by
pickle, since it comes from us; the result crosses by JSON, since input may have taken the child over. The child
(`child.py`) imports the module at the first call, so it should need neither torch nor transformers. It starts at the
first call, in some 50 ms, and is kept for those to come. With a `Preparation` it first makes what all calls need, which
functions then take before their argument: "module:Class.method" of a Class that was prepared.

A call ends, and its child is killed, when the time, the memory or the size of the result is used up, when nobody wants
the result any longer, and when the `Confined` is closed. Each way has its error (`errors.py`). Any thread may call;
calls beyond `num_children` at once wait for their turn. Knows nothing of what is run.
"""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pagoda.confined.errors import (
    CrashedError,
    FunctionError,
    KilledError,
    NotReadyError,
    NotWantedError,
    TooMuchMemoryError,
    TooSlowError,
)
from pagoda.confined.process import POLL_SECONDS, Child, Reply

# Beside the time on a processor: a machine that is busy with other things makes a call last longer, not cost more.
WALL_FACTOR = 10.0
WALL_SECONDS = 5.0
# What a request is.
CALL, PREPARE = "call", "prepare"


@dataclass(frozen=True)
class Preparation:
    """What a new child makes once, in so many seconds, and keeps: what `function` gives for what `argument` gives."""

    function: str
    argument: Callable[[], Any]
    seconds: float


class Confined:
    """At most `num_children` children, each of which may use `memory_nbytes` of address space.

    A result may have `result_nbytes`. A call that takes long gives way to whatever else runs on the machine, and is the
    last of its child, unless it `gives_way` to nobody. After `os.fork()` the forked process has children of its own.
    """

    def __init__(
        self,
        *,
        memory_nbytes: int,
        num_children: int = 1,
        result_nbytes: int = 1 << 20,
        preparation: Preparation | None = None,
        gives_way: bool = True,
    ) -> None:
        self._memory_nbytes = memory_nbytes
        self._preparation = preparation
        self._gives_way = gives_way
        self._num_children = num_children
        self._result_nbytes = result_nbytes
        self._is_closed = False
        self._start_anew()
        os.register_at_fork(after_in_child=_weakly(self._after_fork))

    def _start_anew(self) -> None:
        self._turns = threading.BoundedSemaphore(self._num_children)
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._end = weakref.finalize(self, _end_all, self._children)

    def call(
        self, function: str, argument: Any, *, seconds: float, is_wanted: Callable[[], bool] = lambda: True
    ) -> Any:
        """What `function` makes of `argument` in `seconds` on a processor, a few times that by the clock.

        Raises a ConfinedError. `is_wanted` is asked many times a second, also while other calls have their turn. A call
        whose child is killed by somebody else is made once more.
        """
        request = (CALL, function, argument)
        try:
            return self._attempt(request, seconds, is_wanted)
        except KilledError:  # perhaps for the memory that others take
            return self._attempt(request, seconds, is_wanted)

    def close(self) -> None:
        """End the children; calls in progress and to come raise NotWantedError. Closing twice is fine."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            for child in self._children:
                child.kill()
        for child in idle:
            self._drop(child)

    def _attempt(self, request: tuple[str, str, Any], seconds: float, is_wanted: Callable[[], bool]) -> Any:
        self._check(is_wanted)
        with self._turn(is_wanted), self._child(is_wanted) as child:
            reply = self._ask(child, request, seconds, is_wanted)
        return reply.result()

    def _ask(self, child: Child, request: tuple[str, str, Any], seconds: float, is_wanted: Callable[[], bool]) -> Reply:
        wall_seconds = WALL_SECONDS + WALL_FACTOR * seconds
        deadline = monotonic() + wall_seconds

        def check() -> None:
            self._check(is_wanted)
            if monotonic() > deadline:
                raise TooSlowError(f"took longer than {seconds:g} s")

        try:
            return child.ask(pickle.dumps((*request, seconds, wall_seconds)), self._result_nbytes, check)
        except EOFError:
            check()
            raise child.cause_of_death(seconds) from None

    def _check(self, is_wanted: Callable[[], bool]) -> None:
        if self._is_closed or not is_wanted():
            raise NotWantedError("was not wanted any longer")

    @contextmanager
    def _turn(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        turns = self._turns
        while not turns.acquire(timeout=POLL_SECONDS):
            self._check(is_wanted)
        try:
            yield
        finally:
            turns.release()

    @contextmanager
    def _child(self, is_wanted: Callable[[], bool]) -> Iterator[Child]:
        """A child for one call. It is killed if the call does not come to its end."""
        child = self._taken()
        is_good = False
        try:
            if self._preparation is not None and not child.is_prepared:
                self._prepare(child, self._preparation, is_wanted)
            child.may_give_way = self._gives_way
            yield child
            is_good = not child.is_worn
        finally:
            with self._lock:
                is_good = is_good and not self._is_closed
                if is_good:
                    self._idle.append(child)
            if not is_good:
                self._drop(child)

    def _taken(self) -> Child:
        """One that is idle and lives, else a new one."""
        while True:
            with self._lock:
                if self._is_closed:
                    raise NotWantedError("was not wanted any longer")
                if not self._idle:
                    child = Child(self._memory_nbytes)
                    self._children.add(child)
                    return child
                child = self._idle.pop()
            if child.is_alive:
                return child
            self._drop(child)

    def _prepare(self, child: Child, preparation: Preparation, is_wanted: Callable[[], bool]) -> None:
        request = (PREPARE, preparation.function, preparation.argument())
        try:
            self._ask(child, request, preparation.seconds, is_wanted).result()
        except FunctionError as error:
            raise NotReadyError(str(error), is_final=True) from error
        except (TooSlowError, TooMuchMemoryError, CrashedError) as error:
            raise NotReadyError(f"to prepare for it {error}") from error
        child.is_prepared = True

    def _drop(self, child: Child) -> None:
        with self._lock:
            self._children.discard(child)
        child.end()

    def _after_fork(self) -> None:
        """The children belong to the process that was forked, and its other threads may have held the lock."""
        self._end.detach()
        for child in list(self._children):
            child.disown()
        self._start_anew()


def _end_all(children: set[Child]) -> None:
    for child in list(children):
        child.end()


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """A method that is called only while its object lives; `os.register_at_fork` keeps what it is given for ever."""
    weak = weakref.WeakMethod(method)

    def call() -> None:
        living = weak()
        if living is not None:
            living()

    return call
