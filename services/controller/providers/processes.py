"""Processes found again by pid and start time, and watched by pidfd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class EngineProcess:
    """One engine's process, started here or by the controller before."""

    pid: int
    start_time: str
    pidfd: int
    child: subprocess.Popen[bytes] | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def handle(self) -> str:
        return f"{self.pid}:{self.start_time}"

    @property
    def age_rank(self) -> tuple[int, int]:
        """The lower, the older."""
        return int(self.start_time), self.pid

    def signal(self, number: signal.Signals) -> bool:
        """Whether it was there to be signalled."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Watches no more."""
        os.close(self.pidfd)
        if self.child is not None:
            self.child.returncode = self.child.poll() or 0


def start_time(pid: int) -> str:
    """Start of a process in clock ticks since boot: pid and start time are never used twice."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[19]


def open_process(pid: int, child: subprocess.Popen[bytes] | None) -> EngineProcess:
    """Raises OSError when there is no such process, or nothing left to watch it with."""
    pidfd = os.pidfd_open(pid)
    try:
        return EngineProcess(pid, start_time(pid), pidfd, child)
    except OSError:
        os.close(pidfd)
        raise


def variable_of(pid: int, name: str) -> str:
    """What a process was started with; empty when it has no such variable. Raises OSError."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    prefix = f"{name}=".encode()
    found = next((v for v in variables if v.startswith(prefix)), prefix)
    return found[len(prefix) :].decode(errors="replace")
