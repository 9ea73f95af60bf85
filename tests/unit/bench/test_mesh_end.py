from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.mesh_directory import MeshDirectory, MeshState
from services.cli.processes import MESH_ID_VARIABLE, lives

MESH = "a-mesh-that-was-left"
RUNS = """
import sys, time
from pathlib import Path
from bench.mesh_end import ends_with_us
with ends_with_us(Path(sys.argv[1])) as held:
    print("runs", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a mesh in this directory."""
    ended = f"mesh-{os.getpid()}-{MESH}"
    process = subprocess.Popen(["sleep", "600"], env=os.environ | {MESH_ID_VARIABLE: ended})
    MeshDirectory(tmp_path).write(MeshState(ended, process.pid, "m", "ready", "", ()))
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Who runs that mesh."""
    command = [sys.executable, "-c", RUNS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        yield process
        process.kill()


def test_a_mesh_ends_with_who_runs_it_however_that_ends(
    service: subprocess.Popen[bytes], runs: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert lives(service.pid)
    runs.kill()
    assert service.wait(60) == -signal.SIGTERM
    assert runs.wait(60) == -signal.SIGKILL


def test_a_mesh_that_is_up_at_the_end_is_taken_down(
    service: subprocess.Popen[bytes], runs: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    runs.communicate(timeout=120)
    assert runs.returncode == 0
    assert service.wait(60) == -signal.SIGTERM
    assert MeshDirectory(tmp_path).read() is None
