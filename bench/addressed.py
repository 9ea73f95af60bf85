"""Processes that print where they listen."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

START_S = 120.0
"""Until it says so; on a busy machine imports alone may take half of that."""


@contextmanager
def addressed(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """One that says `… grpc on host:port` in its first line, and its address. Raises RuntimeError
    where it says nothing."""
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    late = threading.Timer(START_S, running.kill)
    late.start()
    try:
        assert running.stdout is not None
        said = running.stdout.readline().split()
        late.cancel()
        if not said:
            raise RuntimeError(f"{' '.join(command)} does not say where it listens")
        yield said[-1]
    finally:
        late.cancel()
        running.terminate()
        running.wait(60)
        if running.stdout is not None:
            running.stdout.close()
