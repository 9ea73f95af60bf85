"""A whole mesh on a virtual clock."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Protocol

from services.common.exchange import PrefixNews, Route
from services.common.generation import GenerationRequest
from services.common.nodes import Member, NodeShape
from simulator.environment.addresses import ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Process
from simulator.environment.settings import SimulationSettings
from simulator.processes.client import Client, ClientMonitor
from simulator.processes.controller import SimulatedController
from simulator.processes.controlling import ControllerMonitor
from simulator.processes.engine import HeadMonitor, SimulatedEngine
from simulator.processes.placement import SimulatedPlacement
from simulator.processes.provider import SimulatedProvider
from simulator.processes.router import RouterMonitor, SimulatedRouter


class Monitor(ControllerMonitor, HeadMonitor, RouterMonitor, ClientMonitor, Protocol):
    """Sees everything that matters to an oracle."""


class World:
    """Makes the processes, and makes them again."""

    def __init__(self, random: Random, settings: SimulationSettings, monitor: Monitor) -> None:
        self.environment = Environment(random, settings)
        self.clock = self.environment.clock
        self.network = self.environment.network
        self.provider = SimulatedProvider(self.environment, self._start_engine)
        self.placement = SimulatedPlacement(self.environment)
        self._monitor = monitor
        self.routers = [self._start_router(number) for number in range(settings.routers)]
        self.controller = SimulatedController(self.environment, monitor, self.provider, [], {})
        self.clients: list[Client] = []

    @property
    def settings(self) -> SimulationSettings:
        """As they are now: the next process goes by them."""
        return self.environment.settings

    # Engines

    @property
    def engines(self) -> list[SimulatedEngine]:
        """Those that live."""
        nodes = self.provider.nodes.values()
        return [node for node in nodes if isinstance(node, SimulatedEngine) and node.alive]

    def engine(self, incarnation: str) -> SimulatedEngine:
        """By incarnation, dead or alive."""
        return self.network.process(incarnation, SimulatedEngine)

    def engines_of(self, members: Iterable[Member]) -> list[SimulatedEngine]:
        """The processes of a formation."""
        return [self.engine(member.incarnation) for member in members]

    def _start_engine(self, node_id: str, shape: NodeShape) -> SimulatedEngine:
        return SimulatedEngine(self.environment, self._monitor, node_id, shape)

    # Controller, routers and clients

    def crash_controller(self, away_s: float) -> None:
        """SIGKILL; what was durable is there when it is back."""
        self.controller.kill()
        self.clock.after(away_s, self._restart_controller)

    def _restart_controller(self) -> None:
        old = self.controller
        if not old.alive:
            self.controller = SimulatedController(
                self.environment, self._monitor, self.provider, old.records, old.notes
            )

    def crash_placement(self, away_s: float) -> None:
        """SIGKILL; it holds nothing that anybody misses."""
        self.placement.kill()
        self.clock.after(away_s, self._restart_placement)

    def _restart_placement(self) -> None:
        if not self.placement.alive:
            self.placement = SimulatedPlacement(self.environment)

    def crash_router(self, router: SimulatedRouter, away_s: float) -> None:
        """SIGKILL; a new one takes its place."""
        index = self.routers.index(router)
        router.kill()
        self.clock.after(away_s, self._restart_router, index)

    def _restart_router(self, index: int) -> None:
        if not self.routers[index].alive:
            self.routers[index] = self._start_router(index)
            if self.controller.alive:
                cluster = self.controller.cluster
                self.routers[index].update(cluster.routes()[1], cluster.handing_over())

    def _start_router(self, index: int) -> SimulatedRouter:
        name = f"{ROUTERS}{index}"
        return SimulatedRouter(self.environment, self._monitor, name, self._cached)

    def _cached(
        self, router: Process, route: Route, position: int
    ) -> tuple[PrefixNews | None, int]:
        head = self.network.process(route.incarnation, SimulatedEngine)
        if not head.alive or not self.network.reaches(router, head):
            return None, position
        return head.prefixes(route.formation_id, position)

    def ask(self, request: GenerationRequest, first: Client | None = None) -> Client:
        """A client comes; `first` is the one whose generation it reads too."""
        client = Client(self.environment, self._monitor, request, first)
        self.clients.append(client)
        return client
