"""`shunt down`: ends a mesh whole, whatever state it is in."""

from __future__ import annotations

import os
import signal

from services.cli import processes
from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.processes import OwnProcess

SUPERVISOR_GRACE_S = 20.0
GRACE_S = 3.0


def take_down(directory: MeshDirectory) -> bool:
    """Ends supervisor, services and engines; False when none of them lived."""
    state = directory.read()
    if state is None:
        return False
    supervisor = _supervisor(directory, state.supervisor_pid)
    if supervisor is not None:
        supervisor.signal(signal.SIGTERM)
        if not supervisor.wait(SUPERVISOR_GRACE_S):
            supervisor.signal(signal.SIGKILL)
            supervisor.wait(GRACE_S)
        supervisor.close()
    left = processes.own_processes(state.mesh_id)
    processes.end(left, GRACE_S)
    directory.remove_state()
    return supervisor is not None or bool(left)


def _supervisor(directory: MeshDirectory, pid: int) -> OwnProcess | None:
    """The supervisor while it lives: it holds the lock, and only it wrote the state."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        with directory.locked():
            os.close(pidfd)
            return None
    except MeshError:
        return OwnProcess(pid, pidfd)
