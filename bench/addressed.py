"""Processes that print where they listen."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def addressed(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """One that says `… grpc on host:port` in its first line, and its address."""
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        yield running.stdout.readline().split()[-1]
    finally:
        running.terminate()
        running.wait(60)
