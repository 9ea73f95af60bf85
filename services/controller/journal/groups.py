"""One thread that writes what a journal is given: many writes, one commit."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from services.common.errors import ResourceExhausted

T = TypeVar("T")
_log = logging.getLogger(__name__)

Statement = tuple[str, tuple[object, ...]]


@dataclass(slots=True)
class Group:
    """Writes that are committed together."""

    statements: list[Statement]
    sync: bool
    writes: int
    future: asyncio.Future[None]


class GroupWriter(ABC):
    """Groups writes that arrive within `interval_s` into one transaction, on the event loop, so
    that the thread is woken once a group.

    A group is durable before it is answered when any of its writes asks for it; so is then every
    earlier group too: what is stored always is a prefix of what was written. For the same reason
    every write behind a failed one fails too, until `reset`.
    """

    def __init__(self, *, interval_s: float, pending_limit: int) -> None:
        self._interval_s = interval_s
        self._pending_limit = pending_limit
        self._pending = 0
        self._loop = asyncio.get_running_loop()
        self._group: Group | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._queue: queue.SimpleQueue[Group | Callable[[], object] | None] = queue.SimpleQueue()
        self._failed: Exception | None = None
        self.exhausted = False
        """The last group failed for want of room, and none came since."""
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Too many writes wait already."""
        return self._pending >= self._pending_limit

    def write(self, statements: Sequence[Statement], *, sync: bool) -> asyncio.Future[None]:
        """Resolves when the statements are committed, all of them or none; writes of one group
        share the future. A write with `sync` does not wait for the interval.

        Raises ResourceExhausted while it is full. The future fails with
        ResourceExhausted (disk full), DataLoss (damaged store) or Unavailable; with anything else
        for a defect.
        """
        if self.full:
            raise ResourceExhausted("too many writes wait for the journal")
        self._pending += 1
        if self._group is None:
            self._group = Group([], False, 0, self._loop.create_future())
            self._timer = self._loop.call_later(self._interval_s, self._flush)
        group = self._group
        group.statements += statements
        group.writes += 1
        if sync:
            group.sync = True
            self._flush()
        return group.future

    def ask(self, what: Callable[[], T]) -> asyncio.Future[T]:
        """What a question that is put on the thread finds, behind all that was written before;
        fails with what it raises."""
        self._flush()
        found: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(partial(self._answer, what, found))
        return found

    def _answer(self, what: Callable[[], T], found: asyncio.Future[T]) -> None:
        try:
            answer = what()
        except Exception as error:  # the thread must live to say so
            self._tell(fail, found, error)
        else:
            self._tell(give, found, answer)

    def reset(self) -> None:
        """Takes writes again after a failure; the caller has read again what is stored."""
        self._flush()
        self._queue.put(self._forget_failure)

    def stop(self) -> None:
        """Hands over what waits; `join` waits until it is committed."""
        self._flush()
        self._queue.put(None)

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the thread, after `stop`; blocks. False where it took longer."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _commit(self, group: Group) -> Exception | None:
        """On the thread: stores all of a group or nothing, and says why nothing."""

    def _forget_failure(self) -> None:
        self._failed = None

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._group is not None:
            self._queue.put(self._group)
            self._group = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if not isinstance(item, Group):
                item()
                continue
            self._failed = self._failed or self._commit(item)
            self._tell(self._resolve, item, self._failed)

    def _tell(self, told: Callable[..., object], *about: object) -> None:
        try:
            self._loop.call_soon_threadsafe(told, *about)
        except RuntimeError:
            _log.warning("nobody waits for what was written")

    def _resolve(self, group: Group, error: Exception | None) -> None:
        self._pending -= group.writes
        if group.future.done():
            return
        if error is None:
            group.future.set_result(None)
        else:
            group.future.set_exception(error)


def give(future: asyncio.Future[T], result: T) -> None:
    """Resolves a future that may have been given up."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[T], error: Exception) -> None:
    """Likewise, with an error."""
    if not future.done():
        future.set_exception(error)
