"""Finds and ends the processes of one mesh, and never another's.

Every process of a mesh inherits its id in the environment, engines too, which outlive the
controller that launched them. A process is signalled through a pidfd that was opened before its
environment was read, so a pid that was used again is never hit.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

MESH_ID_VARIABLE = "SHUNT_MESH_ID"
INSIST_S = 0.5
"""A process that is ended is asked again after this long."""


class OwnProcess:
    """A process of the mesh, held by a pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def signal(self, number: signal.Signals) -> None:
        """Signals it, if it still lives."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, at the latest after `timeout_s`."""
        return bool(select.select([self._pidfd], [], [], max(0.0, timeout_s))[0])

    def close(self) -> None:
        os.close(self._pidfd)


def lives(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not waited for is none."""
    try:
        process = OwnProcess(pid, os.pidfd_open(pid))
    except OSError:
        return False
    ended = process.wait(0)
    process.close()
    return not ended


def open_own(pid: int, mesh_id: str) -> OwnProcess | None:
    """The process, if it lives and belongs to the mesh."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if _mesh_of(pid) == mesh_id:
        return OwnProcess(pid, pidfd)
    os.close(pidfd)
    return None


def own_processes(mesh_id: str) -> list[OwnProcess]:
    """All processes of the mesh but this one."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    found = (open_own(pid, mesh_id) for pid in pids if pid != os.getpid())
    return [process for process in found if process is not None]


def end(processes: Iterable[OwnProcess], grace_s: float) -> None:
    """Asks processes to stop, soon a second time (services that would first serve on end at once
    then), kills what is left after the grace, and closes them."""
    asked = list(processes)
    left = asked
    for wait_s in (INSIST_S, grace_s):
        for process in left:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + wait_s
        left = [process for process in left if not process.wait(deadline - time.monotonic())]
    for process in left:
        process.signal(signal.SIGKILL)
    for process in asked:
        process.wait(grace_s)
        process.close()


def _mesh_of(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{MESH_ID_VARIABLE}=".encode()
    found = next((v for v in variables if v.startswith(prefix)), None)
    return None if found is None else found[len(prefix) :].decode(errors="replace")
