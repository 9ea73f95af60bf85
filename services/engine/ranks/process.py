"""`python -m services.engine.ranks.process`: one rank of a stage, started by its engine alone.

It ends with the engine, however that ends, and with whatever it did not expect: the engine then
ends the others, which wait for it in the middle of a step.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from services.common import logs
from services.common.errors import ShuntError
from services.engine.backend import StageBackend
from services.engine.ranks.messages import Answer, Begin, Call, Loaded, Pulse, Refusal
from services.engine.ranks.rank import Rank

PULSE_S = 0.5
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


@dataclass(slots=True)
class _Load:
    """In a thread of its own, at a priority of its own, while the process says that it lives."""

    begin: Begin
    rank: Rank
    so_far: tuple[int, int] = (0, 0)
    stage: StageBackend | None = None
    fault: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            if sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.begin.niceness)
            loader = self.begin.loader(self.rank)
            self.stage = loader.load(self.begin.model, self.begin.spec, self._progress)
        except BaseException as error:
            self.fault = error
        finally:
            self.done.set()

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self.so_far = done_bytes, total_bytes


def _load(connection: Connection, rank: Rank, begin: Begin) -> StageBackend:
    load = _Load(begin, rank)
    threading.Thread(target=load.run, name="load", daemon=True).start()
    while not load.done.wait(PULSE_S):
        connection.send(Pulse(*load.so_far))
    if isinstance(load.fault, ShuntError):
        connection.send(Refusal(load.fault))
        raise SystemExit(0)
    if load.fault is not None:
        raise load.fault
    assert load.stage is not None
    stage = load.stage
    loaded = Loaded(stage.facts, stage.resident_layers(), stage.kv_layout, stage.kv_heads)
    connection.send(Answer(loaded))
    return stage


def serve(connection: Connection, rank: Rank) -> None:
    """Loads what the first message says, then computes what the others do."""
    stage = _load(connection, rank, connection.recv())
    computed_s = 0.0
    while True:
        call: Call = connection.recv()
        began_s = time.thread_time()
        said: Answer | Refusal
        try:
            value = getattr(stage, call.method)(*call.arguments)
        except ShuntError as error:  # of all ranks alike, before anything was changed
            said = Refusal(error)
        else:
            computed_s += time.thread_time() - began_s
            said = Answer(value, computed_s)
        if rank.number == 0 or call.each:
            connection.send(said)


def main() -> None:
    fd, memory_fd, number, count, parent = map(int, sys.argv[1:6])
    end_with(parent)
    for told in (signal.SIGINT, signal.SIGTERM):  # to the engine, which ends its ranks in time
        signal.signal(told, signal.SIG_IGN)
    meeting, level = sys.argv[6:8]
    logs.configure("engine", level)
    try:
        serve(Connection(fd), Rank(number, count, memory_fd, meeting))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the engine let go of the stage


if __name__ == "__main__":
    main()
