"""A disk of a few MiB, to be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_CHUNK = bytes(4096)


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """Mounts a file system of this size; without the right to, a reason to skip, or with
    SHUNT_TEST_INSTALL=1 a failure."""
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        if os.environ.get("SHUNT_TEST_INSTALL") == "1":
            pytest.fail(done.stderr)
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], timeout=60, check=True)


def fill(path: Path) -> None:
    """Grows a file until its disk has no block left."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(_CHUNK)
