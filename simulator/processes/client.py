"""A simulated client: it asks, reads, and comes back when its line or its router breaks."""

from __future__ import annotations

from typing import Any, Protocol

from services.common.errors import ShuntError
from services.common.generation import FinishReason, GenerationRequest
from services.router.core.transcript import Delta, Usage
from simulator.environment.addresses import ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Stream


class ClientMonitor(Protocol):
    """Sees what a client sees."""

    def shown(self, client: Client) -> None: ...
    def client_ended(self, client: Client) -> None: ...


class Client(Process):
    """Asks, reads, comes back when its line or its router breaks."""

    def __init__(
        self,
        environment: Environment,
        monitor: ClientMonitor,
        request: GenerationRequest,
        first: Client | None = None,
    ) -> None:
        """`first`: the client that asked; this one reads the same generation from the start."""
        super().__init__(f"client/{request.generation_id}", environment.network)
        self.first = first
        self.last_head = ""
        """Incarnation of the head its reader followed last."""
        self.environment = environment
        self.monitor = monitor
        self.request = request
        self.whole = bool(request.ask_digest) and first is None
        """It wants one answer in the end: what came before its line broke is lost to it."""
        self.ids: list[list[int]] = [[] for _ in range(request.choices)]
        self.texts = [""] * request.choices
        self.finish: list[FinishReason | None] = [None] * request.choices
        self.usage: Usage | None = None
        self.error: ShuntError | None = None
        self.ends = 0
        """Ends it was told of; one is right."""
        self.cancelled = False
        self.left_s: float | None = None
        """When it left for good."""
        self.away_s = 0.2
        """How long it stays away when its line breaks."""
        self.rejoins = 0
        self._seen = ""
        self._stream: Stream | None = None
        self._connect(new=first is None)

    @property
    def ended(self) -> bool:
        """It was told the end."""
        return self.ends > 0

    def _connect(self, new: bool) -> None:
        router = self._any_router()
        if router is None:
            self.after(0.2, self._connect, new)
            return
        again = self._stream is not None
        name = self.request.generation_id
        asked: Any = (self.request, again) if new else (name, self._seen)
        self.rejoins += self._stream is not None
        self._stream = stream = self.open(router, "generate" if new else "rejoin", asked)
        stream.on_message[self] = self._message
        stream.on_end[self] = self._line_ended

    def _message(self, message: tuple[Any, ...]) -> None:
        if message[0] == "delta":
            delta: Delta = message[1]
            self.ids[delta.choice] += delta.ids
            self.texts[delta.choice] += delta.text
            self.finish[delta.choice] = delta.finish or self.finish[delta.choice]
            self._seen = delta.event_id
            self.monitor.shown(self)
        else:
            _, self.error, self.usage, _ = message
            self.ends += 1
            self.monitor.client_ended(self)

    def _line_ended(self, error: ShuntError | None) -> None:
        if self.whole and not self.ended:
            self.ids, self.texts = [[] for _ in self.ids], [""] * len(self.ids)
            self.finish, self._seen = [None] * len(self.ids), ""
        if not self.ended:
            new = not self._seen and self.first is None
            self.after(self.away_s, self._connect, new)

    def hang_up(self) -> None:
        """Closes its line, and comes back."""
        if self._stream in self.streams:
            self._stream.close(self)
            self._line_ended(None)

    def leave(self) -> None:
        """Closes its line, and never comes back."""
        if self._stream in self.streams:
            self.left_s = self.clock.now_s
            self._stream.close(self)

    def cancel(self) -> None:
        """Gives up, at any router."""
        router = self._any_router()
        if router is not None:
            self.cancelled = True
            self.call(router, "cancel", (self.request.generation_id,))

    def _any_router(self) -> str | None:
        routers = self.network.living(ROUTERS)
        return self.environment.random.choice(routers) if routers else None
