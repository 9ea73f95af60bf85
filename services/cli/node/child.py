"""One part of a node, kept running: started, started again when it dies, and ended for good."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from services.cli.node.metrics import RESTARTS
from services.common import health
from services.common.errors import FailedPrecondition
from services.common.roles import Role

_log = logging.getLogger(__name__)

BAD_SETTING = 2
"""Exit status of a service with a setting it cannot use: starting it again is of no use."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """Pauses before a part that died is started again, in seconds."""

    first_s: float
    longest_s: float
    stable_s: float


class Child:
    """A process that dies with this one."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        address: str,
        restarts: Restarts,
        *,
        greeting: Sequence[bytes] = (),
    ) -> None:
        """`address` is where its health is told; a new process is told the lines of `greeting`
        first, as they are then."""
        self.name = name
        self.pid = 0
        self.ended = asyncio.Event()
        """It does not run, and will not."""
        leash = (sys.executable, "-m", "services.cli.node.leash", str(os.getpid()))
        self._command = (*leash, *command)
        self._environment = environment
        self._address = address
        self._restarts = restarts
        self._greeting = greeting
        self._process: asyncio.subprocess.Process | None = None
        self._goes = False
        self._served = False
        self._hurry = asyncio.Event()

    async def keep(self) -> None:
        """Until it ends after `let_go`, or is ended. Raises FailedPrecondition when it never
        served, and says that a setting of it is of no use."""
        pause_s = self._restarts.first_s
        try:
            while not self._goes:
                began_s = time.monotonic()
                status = await self._run()
                lived_s = time.monotonic() - began_s
                if self._goes:
                    return
                if status == BAD_SETTING and not self._served:
                    raise FailedPrecondition(f"the {self.name} does not start", field=self.name)
                if lived_s > self._restarts.stable_s:
                    pause_s = self._restarts.first_s
                RESTARTS.labels(self.name).inc()
                told = {"part": self.name, "status": status, "again_in_s": pause_s}
                _log.warning("a part of the node ended", extra=told)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._hurry.wait()
                pause_s = min(2 * pause_s, self._restarts.longest_s)
        finally:
            self.ended.set()

    async def _run(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        for line in self._greeting:
            self.say(line)
        try:
            status = await self._process.wait()
        finally:
            self.pid = 0
        await self._hung_up(self._process)
        return status

    @staticmethod
    async def _hung_up(process: asyncio.subprocess.Process) -> None:
        """With an end of the pipe left open, what asyncio keeps of a process stays behind it."""
        assert process.stdin is not None
        process.stdin.close()
        with suppress(OSError):
            await process.stdin.wait_closed()

    def say(self, line: bytes) -> None:
        """To its standard input, if it runs."""
        process = self._process
        if process is not None and process.returncode is None and process.stdin is not None:
            process.stdin.write(line)

    async def serves(self) -> bool:
        """It runs, and says that it is healthy. All parts of a node show the node's certificate."""
        healthy = bool(self.pid) and await health.is_serving(self._address, Role.ENGINE)
        self._served = self._served or healthy
        return healthy

    def let_go(self) -> None:
        """It is about to end, and is not started again."""
        self._goes = True
        self._hurry.set()

    async def end(self, grace_s: float) -> None:
        """Told to stop, then killed."""
        self.let_go()
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.ended.wait()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
