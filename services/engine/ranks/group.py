"""The processes of one stage's ranks: they start, are watched, and end together."""

from __future__ import annotations

import logging
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from services.common.errors import DataLoss, Unavailable
from services.common.generation import ModelRef
from services.common.nodes import StageSpec
from services.engine.core.pace import GLANCE_S, Pace
from services.engine.ranks.messages import Answer, Begin, Call, OfRank, Pulse, Refusal

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "services.engine.ranks.process")
END_S = 5.0
"""A killed process is gone by then, or the kernel keeps it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a rank may take before it counts as stuck, and its stage is ended."""

    step_s: float = 5.0
    """Longer than is expected of a step."""
    silent_s: float = 30.0
    """Without a sign of life while it loads."""


class _Child:
    """One rank's process, and this end of its line."""

    def __init__(
        self, number: int, count: int, memory_fd: int, meeting: str, threads: int, level: str
    ) -> None:
        mine, theirs = socket.socketpair()
        self.number, self.silent_s = number, 0.0
        self.line = Connection(mine.detach())
        with theirs:
            numbers = (theirs.fileno(), memory_fd, number, count, os.getpid())
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, numbers), meeting, level],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory_fd),
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    def end(self) -> None:
        """At once; a process that is stopped ends too."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        os.close(self.pidfd)


class RankGroup:
    """Calls of any one thread at a time; any thread may close it.

    A thread of its own starts the processes, for they end with the thread that started them, and
    watches them. When one of them ends, or is stuck, it ends them all: whoever waits for an answer
    then reads the end of the line.
    """

    def __init__(
        self, count: int, *, threads: int = 1, patience: Patience | None = None, level: str = "INFO"
    ) -> None:
        self.count = count
        self.lost = ""
        """Why it is of no use any more."""
        self._threads, self._level = threads, level
        self._patience = patience or Patience()
        self._steps, self._others = Pace(self._patience.step_s), Pace(self._patience.step_s)
        """Of calls that have rows, and of those that have none."""
        self._lock = threading.Lock()
        """Of both, and of what is silent."""
        self._children: list[_Child] = []
        self._loading = False
        self._calls = 0
        self._closing = False
        self._wake, self._woken = os.pipe()
        self._started, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="ranks", daemon=True).start()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the ranks, in their order."""
        self._started.wait()
        return tuple(child.process.pid for child in self._children)

    def load(
        self,
        loader: OfRank,
        model: ModelRef,
        spec: StageSpec,
        progress: Callable[[int, int], None],
    ) -> list[Any]:
        """Has every rank load its part; what each says of it. `progress` counts the bytes of all,
        and what it raises ends the group, as everything does that is raised here.

        Raises what a rank raised, and Unavailable when one ended.
        """
        try:
            return self._load(loader, model, spec, progress)
        except BaseException:
            self.close()
            raise

    def _load(
        self,
        loader: OfRank,
        model: ModelRef,
        spec: StageSpec,
        progress: Callable[[int, int], None],
    ) -> list[Any]:
        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        said: dict[int, Any] = {}
        done: dict[int, Pulse] = {}
        self._begin(Begin(loader, model, spec, niceness))
        while len(said) < self.count:
            for child, message in self._heard([c for c in self._children if c.number not in said]):
                if isinstance(message, Refusal):
                    raise message.error
                if isinstance(message, Answer):
                    said[child.number] = message.value
                else:
                    done[child.number] = message
            progress(
                sum(pulse.done_bytes for pulse in done.values()),
                sum(pulse.total_bytes for pulse in done.values()),
            )
        with self._lock:
            self._loading = False
        return [said[number] for number in range(self.count)]

    def _begin(self, begin: Begin) -> None:
        self._started.wait()
        with self._lock:
            self._loading = True
        try:
            for child in self._children:
                child.line.send(begin)
        except OSError as error:
            raise self._ended_while_loading() from error

    def _heard(self, children: list[_Child]) -> list[tuple[_Child, Any]]:
        """What ranks that load say next."""
        of_line = {child.line: child for child in children}
        heard = []
        try:
            if not of_line:
                raise EOFError
            for line in wait(list(of_line)):
                assert isinstance(line, Connection)
                child = of_line[line]
                heard.append((child, line.recv()))
                with self._lock:
                    child.silent_s = 0.0
        except (EOFError, OSError) as error:
            raise self._ended_while_loading() from error
        return heard

    def _ended_while_loading(self) -> Unavailable:
        self._ended.wait()
        return Unavailable(self.lost, field="stages")

    def call(self, method: str, *arguments: Any, rows: int = 0) -> Answer:
        """What rank 0 answers; all ranks compute it. Raises what they raise, and DataLoss when one
        of them ended or does not come to an end: then all of them have ended."""
        return self._call(Call(method, arguments), rows)[0]

    def call_each(self, method: str, *arguments: Any) -> list[Any]:
        """What every rank answers, in their order."""
        return [said.value for said in self._call(Call(method, arguments, each=True))]

    def _call(self, call: Call, rows: int = 0) -> list[Answer]:
        pace = self._steps if rows else self._others
        self._calls += 1
        with self._lock:
            pace.departed(self._calls, rows, time.monotonic())
        try:
            for child in self._children:
                child.line.send(call)
            if not self._children:
                raise EOFError
            answering = self._children if call.each else self._children[:1]
            answers = [child.line.recv() for child in answering]
        except (EOFError, OSError) as error:
            self._ended.wait()
            raise DataLoss(f"the stage is gone: {self.lost}", field="ranks") from error
        with self._lock:
            pace.came_back(self._calls, time.monotonic())
        for said in answers:
            if isinstance(said, Refusal):
                raise said.error
        return answers

    def close(self) -> None:
        """Ends all ranks; returns when they are gone."""
        self._closing = True
        with suppress(OSError):
            os.write(self._woken, b"x")
        self._ended.wait()

    def _run(self) -> None:
        try:
            self._start()
            self._started.set()
            reason = self._watch()
        except OSError as error:
            reason = f"the ranks do not start: {error.strerror}"
        self.lost = reason
        if not self._closing:
            _log.error("stage lost", extra={"why": reason})
        children, self._children = self._children, []
        for child in children:
            child.process.kill()  # all of them, before one is waited for
        for child in children:
            child.end()
        os.close(self._wake)
        os.close(self._woken)
        self._started.set()
        self._ended.set()

    def _start(self) -> None:
        meeting = f"shunt-ranks-{secrets.token_hex(8)}"
        memory_fd = os.memfd_create(meeting)
        try:
            for number in range(self.count):
                child = _Child(number, self.count, memory_fd, meeting, self._threads, self._level)
                self._children.append(child)
        finally:
            os.close(memory_fd)

    def _watch(self) -> str:
        """Returns when there is a reason to end."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        ranks = {child.pidfd: child for child in self._children}
        for pidfd in ranks:
            poller.register(pidfd, select.POLLIN)
        before_s = time.monotonic()
        while True:
            ready = poller.poll(GLANCE_S * 1000)
            now_s = time.monotonic()
            if self._closing:
                return "it was let go of"
            for fd, _ in ready:
                if fd in ranks:
                    child = ranks[fd]
                    return f"rank {child.number} of {self.count} ended: {child.process.wait()}"
            if stuck := self._stuck(now_s, now_s - before_s):
                return stuck
            before_s = now_s

    def _stuck(self, now_s: float, passed_s: float) -> str:
        with self._lock:
            overdue = [pace.overdue(now_s) for pace in (self._steps, self._others)]
            if any(overdue):
                return f"a step of {self.count} ranks does not come back"
            if not self._loading:
                return ""
            for child in self._children:
                child.silent_s += min(passed_s, GLANCE_S)
                if child.silent_s > self._patience.silent_s:
                    return f"rank {child.number} of {self.count} does not load"
        return ""
