"""Nodes as local processes, each in a session of its own: they outlive the controller."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.common import mesh_token
from services.common.errors import (
    ECHO_LIMIT_CHARS,
    FailedPrecondition,
    PermissionDenied,
    Unavailable,
)
from services.common.nodes import NodeShape
from services.controller.providers.provider import NodeGone

_log = logging.getLogger(__name__)

NODE_ID_VARIABLE = "SHUNT_ENGINE_NODE_ID"
INSIST_S = 0.5
"""An engine that is ended is asked again after this long."""
_LAST_WORDS_BYTES = 4096
ENGINE_COMMAND = (sys.executable, "-m", "services.engine")


@dataclass(slots=True)
class _Process:
    pid: int
    start_time: str
    pidfd: int
    child: subprocess.Popen[bytes] | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def handle(self) -> str:
        return f"{self.pid}:{self.start_time}"


def _start_time(pid: int) -> str:
    """Start of a process in clock ticks since boot: pid and start time are never used twice."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[19]


def _open(pid: int, child: subprocess.Popen[bytes] | None) -> _Process:
    """Raises OSError when there is no such process, or nothing left to watch it with."""
    pidfd = os.pidfd_open(pid)
    try:
        return _Process(pid, _start_time(pid), pidfd, child)
    except OSError:
        os.close(pidfd)
        raise


def _node_id_of(pid: int) -> str:
    """The id a process was launched with; empty when it has none."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    name = f"{NODE_ID_VARIABLE}=".encode()
    return next((v[len(name) :].decode() for v in variables if v.startswith(name)), "")


class LocalProvider:
    """Runs one engine process a node; `environment` gives the variables of a node's engine."""

    def __init__(
        self,
        *,
        environment: Callable[[NodeShape], Mapping[str, str]],
        log_dir: Path,
        command: Sequence[str] = ENGINE_COMMAND,
        log_files_kept: int = 64,
    ) -> None:
        self._environment = environment
        self._log_dir = log_dir
        self._command = tuple(command)
        self._log_files_kept = log_files_kept
        self._processes: dict[str, _Process] = {}
        self._events: asyncio.Queue[NodeGone | None] = asyncio.Queue()

    async def launch(self, node_id: str, shape: NodeShape) -> str:
        if node_id in self._processes:
            return self._processes[node_id].handle
        try:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            self._drop_old_logs()
            return self._watch(node_id, self._start(node_id, shape)).handle
        except OSError as error:
            raise Unavailable(f"cannot start an engine: {error.strerror}") from error

    async def adopt(self, node_id: str, handle: str) -> bool:
        if node_id in self._processes:
            return True
        pid, _, start_time = handle.partition(":")
        try:
            process = _open(int(pid), None)
        except (ValueError, OSError):
            return False
        if process.start_time != start_time:
            os.close(process.pidfd)
            return False
        self._add_reader(node_id, process)
        return True

    async def recognise(self, node_id: str, pid: int) -> str:
        process = self._processes.get(node_id)
        if process is not None and process.pid != pid:
            raise PermissionDenied("another process has this node's name", field="node_id")
        try:
            if node_id != _node_id_of(pid):
                return ""
            handle = f"{pid}:{_start_time(pid)}"
        except OSError:
            return ""
        return handle if await self.adopt(node_id, handle) else ""

    def holds(self, node_id: str) -> bool:
        return node_id in self._processes

    async def terminate(self, node_id: str, grace_s: float) -> None:
        process = self._processes.get(node_id)
        if process is None:
            raise FailedPrecondition("no such process of this mesh", field="node_id")
        if grace_s > 0:
            for wait_s in (min(INSIST_S, grace_s), grace_s):  # the second ends who would serve on
                self._signal(process, signal.SIGTERM)
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.ended.wait(), wait_s)
                    return
            _log.info("engine outlived its grace", extra={"node_id": node_id})
        if not process.ended.is_set():
            self._signal(process, signal.SIGKILL)

    async def events(self) -> AsyncIterator[NodeGone]:
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        for process in self._processes.values():
            self._forget(process)
        self._processes.clear()
        self._events.put_nowait(None)

    def _start(self, node_id: str, shape: NodeShape) -> subprocess.Popen[bytes]:
        variables = {
            **self._environment(shape),
            **mesh_token.narrowed(node_id),
            NODE_ID_VARIABLE: node_id,
        }
        with (self._log_dir / f"{node_id}.log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _watch(self, node_id: str, child: subprocess.Popen[bytes]) -> _Process:
        """Raises OSError; a child that cannot be watched does not live on."""
        try:
            process = _open(child.pid, child)
        except OSError:
            child.kill()
            child.wait()
            raise
        self._add_reader(node_id, process)
        return process

    def _add_reader(self, node_id: str, process: _Process) -> None:
        self._processes[node_id] = process
        loop = asyncio.get_running_loop()
        loop.add_reader(process.pidfd, self._ended, node_id, process)

    def _ended(self, node_id: str, process: _Process) -> None:
        reason = "process ended"
        if process.child is not None:
            status = process.child.poll() or 0
            said = self._last_words(node_id) if status > 0 else ""
            reason = f"exit status {status}" + (f": {said}" if said else "")
        self._forget(process)
        del self._processes[node_id]
        process.ended.set()
        _log.info("engine process ended", extra={"node_id": node_id, "reason": reason})
        self._events.put_nowait(NodeGone(node_id, reason))

    def _last_words(self, node_id: str) -> str:
        """What an engine that failed said last of all; empty when that is a line of its log."""
        try:
            with (self._log_dir / f"{node_id}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return "" if last.startswith("{") else last[:ECHO_LIMIT_CHARS]

    def _forget(self, process: _Process) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        os.close(process.pidfd)
        if process.child is not None:
            process.child.returncode = process.child.poll() or 0

    def _signal(self, process: _Process, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(process.pidfd, number)
        except ProcessLookupError:
            _log.debug("already ended", extra={"pid": process.pid})

    def _drop_old_logs(self) -> None:
        ended = (path for path in self._log_dir.glob("*.log") if path.stem not in self._processes)
        logs = sorted(ended, key=lambda path: path.stat().st_mtime)
        for path in logs[: -self._log_files_kept]:
            path.unlink(missing_ok=True)
