"""`python -m services.router.grammar_process`: compiles strangers' grammars for a router.

A thread that compiles cannot be ended, and a library that asks for too much memory, or runs out of
stack, ends its process. So one that no stream runs in compiles: of a check the kernel counts the
memory and the time on a core, and neither depends on what else the machine does. It ends with the
router, whose end of the line then closes.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgument
from services.model.grammar import Grammars


@dataclass(frozen=True, slots=True)
class Limits:
    """What one check may take. Both are several times what the costliest takes that is compiled
    (tests/unit/model/test_grammar_costs.py): the compiler's own limits refuse with better words."""

    room_bytes: int = 128 << 20
    """Allocated beyond what the process holds before it, used or not: vectors grow by doubling."""
    core_s: float = 2.0
    """Of a core, which may be a slow one."""


OVER_TIME = signal.SIGPROF
"""Ends a process whose check took longer."""
OVER_MEMORY = signal.SIGABRT
"""Ends one that was refused memory."""


def serve(line: Connection, limits: Limits) -> None:
    """Answers what the router asks, one after another, until it has gone."""
    held: dict[str, Grammars] = {}
    while True:
        try:
            asked = json.loads(line.recv_bytes())
        except (EOFError, OSError):
            return
        line.send_bytes(json.dumps(_answer(held, asked, limits)).encode())


def _answer(held: dict[str, Grammars], asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        if asked["do"] == "hold":
            held[asked["model"]] = Grammars(asked["tokenizer"], asked["size"], asked["ends"])
        elif asked["do"] == "apart":
            return {"is": held[asked["model"]].is_apart(asked["token"])}
        else:
            _check(held[asked["model"]], asked["grammar"], limits)
    except InvalidArgument as error:
        return {"refused": error.message}
    return {}


def _check(grammars: Grammars, grammar: str, limits: Limits) -> None:
    """Within the limits; beyond them the process ends by one of the two signals."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + limits.room_bytes, most))
    signal.setitimer(signal.ITIMER_PROF, limits.core_s)
    try:
        grammars.check(grammar)
    except MemoryError:
        signal.raise_signal(OVER_MEMORY)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: private memory that can be written."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def main() -> None:
    """`argv`: the descriptor of this end of the line, and the limits. A signal to the group is the
    router's to act on: it drains, and checks meanwhile."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what strangers send is not left on a disk
    line, room_bytes, core_s = sys.argv[1:]
    serve(Connection(int(line)), Limits(int(room_bytes), float(core_s)))


if __name__ == "__main__":
    main()
