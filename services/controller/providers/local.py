"""Nodes as local processes, each in a session of its own: they outlive the controller.

It plays the cloud as well: nodes are launched from offers that can run out, and one that is given
notice is killed at its deadline. What a node was launched from stands in its process' environment,
where the next controller finds it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from services.common import mesh_token
from services.common.errors import (
    ECHO_LIMIT_CHARS,
    FailedPrecondition,
    PermissionDenied,
    ShuntError,
)
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    Capabilities,
    LaunchFailed,
    Market,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from services.controller.providers.processes import (
    EngineProcess,
    open_process,
    start_time,
    variable_of,
)

_log = logging.getLogger(__name__)

NODE_ID_VARIABLE = "SHUNT_ENGINE_NODE_ID"
OFFER_ID_VARIABLE = "SHUNT_OFFER_ID"
INSIST_S = 0.5
"""An engine that is ended is asked again after this long."""
RETRY_AFTER_S = 5.0
"""An offer that had no capacity is left alone for this long, unless it changes before."""
_LAST_WORDS_BYTES = 4096
ENGINE = ("-m", "services.engine")
"""What an interpreter is to run."""


def engine_here(offer: Offer) -> Sequence[str]:
    """In the interpreter that this runs in."""
    return sys.executable, *ENGINE


class LocalProvider:
    """Runs one engine process a node; `environment` and `command` are of an offer's engines."""

    capabilities = Capabilities(launches=True, ends=True, gives_notice=True, declares=True)

    def __init__(
        self,
        *,
        offers: Sequence[Offer],
        environment: Callable[[Offer], Mapping[str, str]],
        log_dir: Path,
        command: Callable[[Offer], Sequence[str]] = engine_here,
        log_files_kept: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = environment
        self._log_dir = log_dir
        self._command = command
        self._log_files_kept = log_files_kept
        self._clock = clock
        self._market = Market()
        self._market.update(offers)
        self._ordered: dict[str, asyncio.Event] = {}
        """Launches that wait for their time, and what calls them off."""
        self._processes: dict[str, EngineProcess] = {}
        self._deadlines: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        """When each node that was given notice is taken away."""
        self._events: asyncio.Queue[ProviderEvent | None] = asyncio.Queue()

    def offers(self) -> tuple[Offer, ...]:
        return self._market.offers()

    async def launch(self, node_id: str, offer: Offer) -> str:
        if node_id in self._processes:
            return self._processes[node_id].handle
        if node_id in self._ordered:
            return ""
        try:
            self._market.launch(node_id, offer.offer_id)
        except ShuntError as error:
            self._launch_failed(node_id, error.message, RETRY_AFTER_S)
            return ""
        return await self._carry_out(node_id, offer)

    async def adopt(self, node_id: str, handle: str) -> bool:
        if node_id in self._processes:
            return True
        pid, _, started = handle.partition(":")
        try:
            process = open_process(int(pid), None)
        except (ValueError, OSError):
            return False
        if process.start_time != started:
            process.close()
            return False
        with suppress(OSError):
            self._market.found(node_id, variable_of(process.pid, OFFER_ID_VARIABLE))
        self._add_reader(node_id, process)
        return True

    async def recognise(self, facts: NodeFacts) -> str:
        node_id, pid = facts.node_id, facts.pid
        process = self._processes.get(node_id)
        if process is not None and process.pid != pid:
            raise PermissionDenied("another process has this node's name", field="node_id")
        try:
            if node_id != variable_of(pid, NODE_ID_VARIABLE):
                return ""
            handle = f"{pid}:{start_time(pid)}"
        except OSError:
            return ""
        return handle if await self.adopt(node_id, handle) else ""

    def offer_of(self, node_id: str) -> str:
        return self._market.offer_id_of(node_id)

    def holds(self, node_id: str) -> bool:
        return node_id in self._processes or node_id in self._ordered

    async def terminate(self, node_id: str, grace_s: float) -> None:
        if node_id in self._ordered:
            self._ordered[node_id].set()
            return
        process = self._processes.get(node_id)
        if process is None:
            raise FailedPrecondition("no such process of this mesh", field="node_id")
        if grace_s > 0:
            for wait_s in (min(INSIST_S, grace_s), grace_s):  # the second ends who would serve on
                process.signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.ended.wait(), wait_s)
                    return
            _log.info("engine outlived its grace", extra={"node_id": node_id})
        if not process.ended.is_set():
            process.signal(signal.SIGKILL)

    def give_notice(self, node_id: str, notice_s: float, kind: NoticeKind) -> None:
        if not self.holds(node_id):
            raise FailedPrecondition("no such process of this mesh", field="node_id")
        deadline_s = self._clock() + notice_s
        if node_id in self._deadlines:
            known_s, timer = self._deadlines[node_id]
            if deadline_s >= known_s:
                return
            timer.cancel()
        timer = asyncio.get_running_loop().call_later(notice_s, self._take_away, node_id)
        self._deadlines[node_id] = deadline_s, timer
        self._events.put_nowait(NodeNotice(node_id, deadline_s, kind))

    async def events(self) -> AsyncIterator[ProviderEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        for _, timer in self._deadlines.values():
            timer.cancel()
        self._deadlines.clear()
        for order in self._ordered.values():
            order.set()
        for process in self._processes.values():
            self._forget(process)
        self._processes.clear()
        self._events.put_nowait(None)

    # What the market does

    def change(
        self, offer_id: str, *, count: int | None = None, price_per_hour: float | None = None
    ) -> None:
        """An offer has another count or price from now on; what runs of it runs on."""
        offers = tuple(
            offer
            if offer.offer_id != offer_id
            else replace(
                offer,
                count=offer.count if count is None else count,
                price_per_hour=offer.price_per_hour if price_per_hour is None else price_per_hour,
            )
            for offer in self._market.offers()
        )
        if self._market.update(offers).changed:
            self._events.put_nowait(OffersChanged(offers))

    def take(self, offer_id: str, count: int, notice_s: float) -> None:
        """Takes the oldest nodes of an offer away; without notice they are killed. Nodes that go
        anyway are not counted, and fewer are taken where there are fewer."""
        staying = sorted(
            (process.age_rank, node_id)
            for node_id, process in self._processes.items()
            if self._market.offer_id_of(node_id) == offer_id and node_id not in self._deadlines
        )
        for _, node_id in staying[:count]:
            if notice_s > 0:
                self.give_notice(node_id, notice_s, NoticeKind.SPOT)
            else:
                self._take_away(node_id)

    def _take_away(self, node_id: str) -> None:
        if node_id in self._ordered:
            self._ordered[node_id].set()
        elif node_id in self._processes:
            self._processes[node_id].signal(signal.SIGKILL)

    # Processes

    async def _carry_out(self, node_id: str, offer: Offer) -> str:
        """Starts what was ordered, once its time has come."""
        called_off = self._ordered[node_id] = asyncio.Event()
        process = None
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(called_off.wait(), offer.launch_s)
            if called_off.is_set():
                self._launch_failed(node_id, "called off")
            elif not self._market.fits(offer.offer_id):
                self._launch_failed(node_id, NO_CAPACITY, RETRY_AFTER_S)
            else:
                self._log_dir.mkdir(parents=True, exist_ok=True)
                self._drop_old_logs()
                process = self._watch(node_id, self._start(node_id, offer))
        except OSError as error:
            self._launch_failed(node_id, f"cannot start an engine: {error.strerror}")
        finally:
            del self._ordered[node_id]
            if process is None:
                self._over(node_id)
        return "" if process is None else process.handle

    def _launch_failed(self, node_id: str, reason: str, retry_after_s: float = 0.0) -> None:
        self._events.put_nowait(LaunchFailed(node_id, reason, retry_after_s))

    def _start(self, node_id: str, offer: Offer) -> subprocess.Popen[bytes]:
        variables = {
            **self._environment(offer),
            **mesh_token.narrowed(node_id),
            NODE_ID_VARIABLE: node_id,
            OFFER_ID_VARIABLE: offer.offer_id,
        }
        with (self._log_dir / f"{node_id}.log").open("ab") as log:
            return subprocess.Popen(
                self._command(offer),
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _watch(self, node_id: str, child: subprocess.Popen[bytes]) -> EngineProcess:
        """Raises OSError; a child that cannot be watched does not live on."""
        try:
            process = open_process(child.pid, child)
        except OSError:
            child.kill()
            child.wait()
            raise
        self._add_reader(node_id, process)
        return process

    def _add_reader(self, node_id: str, process: EngineProcess) -> None:
        self._processes[node_id] = process
        loop = asyncio.get_running_loop()
        loop.add_reader(process.pidfd, self._ended, node_id, process)

    def _ended(self, node_id: str, process: EngineProcess) -> None:
        reason = "process ended"
        if process.child is not None:
            status = process.child.poll() or 0
            said = self._last_words(node_id) if status > 0 else ""
            reason = f"exit status {status}" + (f": {said}" if said else "")
        self._forget(process)
        del self._processes[node_id]
        process.ended.set()
        self._over(node_id)
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

    def _over(self, node_id: str) -> None:
        """Nothing runs for the node any more: its place in the market is free."""
        self._market.ended(node_id)
        if node_id in self._deadlines:
            self._deadlines.pop(node_id)[1].cancel()

    def _forget(self, process: EngineProcess) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        process.close()

    def _drop_old_logs(self) -> None:
        ended = (path for path in self._log_dir.glob("*.log") if path.stem not in self._processes)
        logs = sorted(ended, key=lambda path: path.stat().st_mtime)
        for path in logs[: -self._log_files_kept]:
            path.unlink(missing_ok=True)
