"""The data directory of a local mesh: its lock, its state file, its logs.

mesh.lock     held by the supervisor for as long as it lives
mesh.json     the services with their pids and addresses, replaced whole at every change
logs/         a file a service, and NAME.1.log with the lines before it
store/        imported models
controller/   the journal and the engines' logs; standby-N/ the same of each standby
files/        what batches ask and are answered
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from services.cli import processes
from services.common.private import make_private
from services.common.roles import Role

STANDBY = "standby-"
"""What names begin with of the controllers beside the first one."""
Phase = Literal["starting", "ready", "failed", "stopping"]


def may_lead(name: str) -> bool:
    """The service of this name is a controller."""
    return name == "controller" or name.startswith(STANDBY)


def role_of(name: str) -> Role:
    """Whose certificate the service of this name shows."""
    return Role.CONTROLLER if may_lead(name) else Role(name.partition("-")[0])


class MeshError(Exception):
    """Something the person at the terminal can mend; its text says what."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One service process; addresses as clients write them, None when it has none."""

    name: str
    pid: int
    grpc: str | None
    http: str | None

    @property
    def is_controller(self) -> bool:
        """It leads, or may do so."""
        return may_lead(self.name)

    @property
    def role(self) -> Role:
        return role_of(self.name)


@dataclass(frozen=True, slots=True)
class MeshState:
    """What mesh.json holds."""

    mesh_id: str
    supervisor_pid: int
    model: str
    phase: Phase
    message: str
    services: tuple[ServiceRecord, ...]
    certificates: str | None = None
    """Directory of those that the operator shows, where the mesh has certificates."""

    def service(self, name: str) -> ServiceRecord:
        """Raises MeshError when the mesh has no such service."""
        for service in self.services:
            if service.name == name:
                return service
        raise MeshError(f"the mesh has no service {name}")


class MeshDirectory:
    """One mesh lives in it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.store = self.path / "store"
        self.controller = self.path / "controller"
        self.files = self.path / "files"
        self._state_path = self.path / "mesh.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other meshes away; raises MeshError when one is here."""
        try:
            make_private(self.path)
            file = (self.path / "mesh.lock").open("w")
        except OSError as error:
            raise MeshError(f"{self.path} cannot be used: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise MeshError(
                    f"a mesh already runs in {self.path}; `shunt down` ends it, "
                    "--data-dir chooses another directory"
                ) from None
            yield

    def read(self) -> MeshState | None:
        """The state, None when no mesh was ever here or it was taken down. Raises MeshError where
        that cannot be told: a state that nobody may read is not the absence of a mesh."""
        try:
            text = self._state_path.read_text()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise MeshError(f"{self._state_path} cannot be read: {error.strerror}") from None
        try:
            fields = json.loads(text)
            services = tuple(ServiceRecord(**service) for service in fields.pop("services"))
            return MeshState(services=services, **fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise MeshError(
                f"{self._state_path} is not a state file of this version; "
                "end what wrote it and delete it"
            ) from None

    def running(self) -> MeshState:
        """The state; raises MeshError when no mesh runs or nobody keeps it any more."""
        state = self.read()
        if state is None:
            raise MeshError(f"no mesh runs in {self.path}; `shunt up` starts one")
        if state.phase == "failed":
            raise MeshError(f"the mesh in {self.path} has failed: {state.message}")
        if not processes.lives(state.supervisor_pid):
            raise MeshError(
                f"the mesh in {self.path} was left behind: its supervisor has been killed; "
                "`shunt up` starts it anew, `shunt down` ends what is left"
            )
        return state

    def write(self, state: MeshState) -> None:
        partial = self._state_path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(state), indent=1))
        partial.replace(self._state_path)

    def remove_state(self) -> None:
        self._state_path.unlink(missing_ok=True)

    def log_size_bytes(self, name: str) -> int:
        """How long a service's log is now."""
        try:
            return (self.logs / f"{name}.log").stat().st_size
        except OSError:
            return 0

    def log_tail(self, name: str, lines: int = 5, start: int = 0) -> str:
        """The end of a service's log, of what stands behind a byte; of all of it when a new file
        was begun meanwhile."""
        try:
            data = (self.logs / f"{name}.log").read_bytes()
        except OSError:
            return ""
        text = data[start if start <= len(data) else 0 :].decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])
