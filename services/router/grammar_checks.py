"""Grammars that clients send, checked in processes of their own: a few a router, each started when
all others are busy, and anew when a check was too much for it. Every call blocks its thread.
"""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from services.common.errors import InvalidArgument, Unavailable
from services.router.grammar_process import OVER_MEMORY, OVER_TIME, Limits

COMMAND = (sys.executable, "-m", "services.router.grammar_process")
MAX_PROCESSES = 2
MAX_HELD = 8
"""Models of one process, each some tens of MiB; one that holds more is begun anew."""
ANSWER_S = 30.0
"""A process that has not answered by then is ended: its machine gives it nothing."""
_END_S = 5.0
_TRIES = 2
"""What one process may not do for what it did before, a new one may."""


class _Ended(Exception):
    """The process is no more."""

    def __init__(self, by: int) -> None:
        super().__init__(by)
        self.by = by
        """The signal that ended it; 0: none did."""


class _Process:
    """One process, and this end of its line. One thread at a time asks; any may end it."""

    def __init__(self, limits: Limits) -> None:
        mine, theirs = socket.socketpair()
        self.line = Connection(mine.detach())
        self.held: set[str] = set()
        with theirs:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, (theirs.fileno(), limits.room_bytes, limits.core_s))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a dying allocator's words
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def ask(self, **asked: Any) -> Any:
        """Its answer. Raises InvalidArgument for a refusal, _Ended."""
        try:
            self.line.send_bytes(json.dumps(asked).encode())
            if not self.line.poll(ANSWER_S):
                self.process.kill()
            answer = json.loads(self.line.recv_bytes())
        except (EOFError, OSError):
            self.process.kill()
            raise _Ended(max(0, -self.process.wait(_END_S))) from None
        if "refused" in answer:
            raise InvalidArgument(answer["refused"], field="grammar")
        return answer.get("is")

    def end(self) -> None:
        """At once. The line is closed by the last who asks, when he reads its end."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)


class GrammarChecks:
    """Of one router; nothing runs before it is asked."""

    def __init__(self, processes: int = MAX_PROCESSES, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._most = processes
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._starting = 0
        self._changed = threading.Condition()
        self._closed = False
        self._names = itertools.count()

    def of(self, tokenizer_json: str, size: int, end_ids: Sequence[int]) -> ModelChecks:
        """Those of one model, which can produce `size` tokens."""
        model = {"tokenizer": tokenizer_json, "size": size, "ends": list(end_ids)}
        return ModelChecks(self, str(next(self._names)), model)

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        with self._changed:
            return [one.process.pid for one in (*self._idle, *self._busy)]

    def close(self) -> None:
        """Ends them; who waits for an answer gets Unavailable."""
        with self._changed:
            self._closed = True
            processes = [*self._idle, *self._busy]
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for one in processes:
            one.end()
        for one in idle:
            one.line.close()

    @contextmanager
    def process(self) -> Iterator[_Process]:
        """One that nobody else asks. Raises Unavailable."""
        with self._changed:
            while not (self._idle or self._closed or self._count < self._most):
                self._changed.wait()
            self._check_open()
            one = self._idle.pop() if self._idle else None
            if one is None:
                self._starting += 1
            else:
                self._busy.add(one)
        if one is None:
            one = self._started()
        kept = False
        try:
            yield one
            kept = one.process.poll() is None
        except InvalidArgument:
            kept = True
            raise
        finally:
            with self._changed:
                self._busy.discard(one)
                kept = kept and not self._closed and len(one.held) <= MAX_HELD
                if kept:
                    self._idle.append(one)
                self._changed.notify()
            if not kept:
                one.end()
                one.line.close()

    @property
    def _count(self) -> int:
        return len(self._idle) + len(self._busy) + self._starting

    def _started(self) -> _Process:
        one = None
        try:
            one = _Process(self._limits)
        except OSError as error:
            raise Unavailable("no process to check grammars in", retry_after_s=5.0) from error
        finally:
            with self._changed:
                self._starting -= 1
                if one is not None:
                    self._busy.add(one)
                self._changed.notify()
        if self._closed:
            one.end()
        return one

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("this router stops; ask another one")

    def ended(self, ended: _Ended) -> Exception:
        """What is said of a check that ended every process it was tried in."""
        self._check_open()
        if ended.by in (0, signal.SIGKILL):  # by the machine, not by the grammar
            return Unavailable("the grammar could not be checked", retry_after_s=5.0)
        why = "it cannot be compiled"
        if ended.by == OVER_TIME:
            why = f"to compile it takes more than {self._limits.core_s:g} s"
        if ended.by == OVER_MEMORY:
            why = f"to compile it takes more than {self._limits.room_bytes >> 20} MiB"
        return InvalidArgument(why, field="grammar")


class ModelChecks:
    """Grammars of one model."""

    def __init__(self, checks: GrammarChecks, name: str, model: Mapping[str, Any]) -> None:
        self._checks = checks
        self._name = name
        self._model = model
        self._apart: dict[int, bool] = {}

    def is_apart(self, token_id: int) -> bool:
        """A token that no text spells: a grammar has to name it by its id. Asked once for each.
        Raises InvalidArgument for a tokenizer that cannot be used so, Unavailable."""
        if token_id not in self._apart:
            self._apart[token_id] = bool(self._ask(do="apart", token=token_id))
        return self._apart[token_id]

    def check(self, grammar: str) -> None:
        """Raises InvalidArgument for one that cannot be compiled, is soon too much to follow, or
        asks for more time or memory than a check has, and says why; Unavailable."""
        self._ask(do="check", grammar=grammar)

    def _ask(self, **asked: Any) -> Any:
        tries = 0
        while True:
            tries += 1
            try:
                with self._checks.process() as process:
                    if self._name not in process.held:
                        process.ask(do="hold", model=self._name, **self._model)
                        process.held.add(self._name)
                    return process.ask(model=self._name, **asked)
            except _Ended as ended:
                if tries >= _TRIES:
                    raise self._checks.ended(ended) from None
