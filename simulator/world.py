"""A whole mesh on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from services.common.exchange import Checkpoint, Frame, ResumeQuestion
from services.common.generation import ModelRef
from services.common.nodes import Member, NodeShape
from services.controller.core.cluster.actions import LaunchNode, LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerEvent, LedgerSettings, Outcome
from services.controller.core.ledger.records import Record
from services.engine.core.actions import SequenceKey
from services.engine.core.head_settings import HeadSettings
from services.router.core.follower_settings import FollowerSettings
from simulator.environment.clock import Clock
from simulator.environment.network import Process, SimulatedNetwork, Stream
from simulator.processes.controller import SimulatedController
from simulator.processes.engine import RunningSequence, SimulatedEngine
from simulator.processes.router import Client, Following, SimulatedRouter

MODEL = ModelRef("model", "d1")


class Monitor(Protocol):
    """Sees everything that matters to an oracle."""

    def batched(self, engine: SimulatedEngine, batch: Sequence[RunningSequence]) -> None: ...
    def sampled(self, key: SequenceKey, position: int, token: int) -> None: ...
    def durable(self, ledger: Ledger, records: Sequence[Record]) -> None: ...
    def before(self, ledger: Ledger, checkpoint: Checkpoint) -> Any: ...
    def checkpoint(
        self, ledger: Ledger, checkpoint: Checkpoint, outcome: Outcome[Any], before: Any
    ) -> None: ...
    def asked(self, question: ResumeQuestion) -> None: ...
    def granted(self, ledger: Ledger, question: ResumeQuestion, outcome: Outcome[Any]) -> None: ...
    def ledger_event(self, event: LedgerEvent) -> None: ...
    def cluster_event(self, event: LogEvent) -> None: ...
    def frame(self, following: Following, stream: int, frame: Frame) -> None: ...
    def shown(self, client: Client) -> None: ...
    def client_ended(self, client: Client) -> None: ...


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Settings of every core, times scaled for short schedules."""

    head: HeadSettings = field(default_factory=lambda: HeadSettings(detach_s=2.0, keep_s=5.0))
    ledger: LedgerSettings = field(
        default_factory=lambda: LedgerSettings(retention_s=20.0, parked_retention_s=60.0)
    )
    follower: FollowerSettings = field(
        default_factory=lambda: FollowerSettings(recover_s=20.0, resume_timeout_s=3.0, reach_s=3.0)
    )
    cluster: ClusterSettings = field(
        default_factory=lambda: ClusterSettings(
            model=MODEL,
            initial=(NodeShape(1 << 30, 1.0),) * 4,
            restart_grace_s=1.5,
            progress_s=2.0,
            settle_s=2.0,
            launch_timeout_s=3.0,
            lost_kept_s=10.0,
            retry_max_s=2.0,
            replace_max_s=2.0,
            stable_s=1.0,
            load_attempts=3,
        )
    )
    launch_s: float = 0.3
    load_s: float = 0.5
    exits_seen: bool = True
    """The provider tells the controller when a process it started dies."""
    launch_fails: float = 0.0
    plan_fails: float = 0.0
    load_fails: float = 0.0
    other_class: float = 0.0
    """Share of the nodes whose arithmetic is of another class."""


class World:
    """The processes, and how they find each other."""

    def __init__(
        self,
        random: Random,
        settings: WorldSettings,
        monitor: Monitor,
        *,
        exact: bool = True,
        routers: int = 2,
    ) -> None:
        self.random = random
        self.settings = settings
        self.cluster_settings = settings.cluster
        """Of the next controller."""
        self.failed_launches = 0
        self.failing: set[str] = set()
        """What fails at present whoever tries it: launch, load."""
        self.monitor = monitor
        self.exact = exact
        self.clock = Clock()
        self.network = SimulatedNetwork(self.clock, random)
        self._ids = 0
        self._engines: dict[str, SimulatedEngine] = {}
        self._names: dict[str, SimulatedEngine] = {}
        self.routers = [SimulatedRouter(self, f"router-{number}") for number in range(routers)]
        self.controller = SimulatedController(self, [], "")
        self.clients: list[Client] = []

    def draw_id(self) -> str:
        """Unique in this world."""
        self._ids += 1
        return f"x{self._ids}"

    def stream(
        self, client: Process, server: Process, accept: Callable[[Stream, Any], None], first: Any
    ) -> Stream:
        """Opens a stream."""
        return Stream(self.network, client, server, accept, first)

    # Engines

    @property
    def engines(self) -> list[SimulatedEngine]:
        """Those that live."""
        return [engine for engine in self._engines.values() if engine.alive]

    def engine(self, incarnation: str) -> SimulatedEngine:
        """By incarnation, dead or alive."""
        return self._names[incarnation]

    def engines_of(self, members: Iterable[Member]) -> list[SimulatedEngine]:
        """The processes of a formation."""
        return [self._names[member.incarnation] for member in members]

    def load_s(self) -> float:
        """How long a stage loads."""
        return self.settings.load_s * (0.5 + self.random.random())

    def fails(self, what: str, share: float) -> bool:
        """Whether this attempt at a launch or a load fails."""
        return self.random.random() < share or what in self.failing

    def numerics_class(self) -> str:
        """Of a new engine's arithmetic."""
        return "other" if self.random.random() < self.settings.other_class else "sim"

    def launch(self, launch: LaunchNode, controller: SimulatedController) -> None:
        """The provider starts a process."""
        if self.fails("launch", self.settings.launch_fails):
            self.failed_launches += 1
            controller.after(0.05, self._launch_failed, launch)
        else:
            self.clock.after(self.settings.launch_s, self._started, launch)

    def _launch_failed(self, launch: LaunchNode) -> None:
        controller = self.controller
        controller.act(controller.cluster.launch_failed(launch.node_id, "", self.clock.now_s))

    def _started(self, launch: LaunchNode) -> None:
        engine = SimulatedEngine(self, launch.node_id, launch.shape)
        self._engines[launch.node_id] = self._names[engine.name] = engine

    def terminate(self, node_id: str) -> None:
        """The provider ends a process."""
        engine = self._engines.get(node_id)
        if engine is not None and engine.alive:
            self.kill_engine(engine)

    def kill_engine(self, engine: SimulatedEngine) -> None:
        """SIGKILL."""
        engine.kill()
        if self.settings.exits_seen:
            self.clock.after(0.02, self._exit_seen, engine)

    def _exit_seen(self, engine: SimulatedEngine) -> None:
        controller = self.controller
        controller.run(self._tell_exit, controller, engine)

    def _tell_exit(self, controller: SimulatedController, engine: SimulatedEngine) -> None:
        now_s = self.clock.now_s
        controller.act(controller.cluster.node_gone(engine.node_id, engine.name, "exit", now_s))

    def restart_engine(self, engine: SimulatedEngine) -> None:
        """Killed, and started again under the same node name by something outside."""
        self.kill_engine(engine)
        self._started(LaunchNode(engine.node_id, engine.facts.shape))

    # SimulatedController and routers

    def crash_controller(self, away_s: float) -> None:
        """SIGKILL; what was durable is there when it is back."""
        self.controller.kill()
        self.clock.after(away_s, self._restart_controller)

    def _restart_controller(self) -> None:
        old = self.controller
        if not old.alive:
            self.controller = SimulatedController(self, old.records, old.snapshot)

    def crash_router(self, router: SimulatedRouter, away_s: float) -> None:
        """SIGKILL; a new one takes its place."""
        index = self.routers.index(router)
        router.kill()
        self.clock.after(away_s, self._restart_router, index)

    def _restart_router(self, index: int) -> None:
        if not self.routers[index].alive:
            self.routers[index] = SimulatedRouter(self, f"router-{index}")
            if self.controller.alive:
                cluster = self.controller.cluster
                self.routers[index].update(cluster.routes()[1], cluster.handing_over())

    def routes_changed(self, cluster: Cluster) -> None:
        """Every router hears of it, in order."""
        routes, handing_over = cluster.routes()[1], cluster.handing_over()
        for router in self.routers:
            router.after(0.002, router.update, routes, handing_over)

    def any_router(self) -> SimulatedRouter | None:
        """One that lives."""
        living = [router for router in self.routers if router.alive]
        return self.random.choice(living) if living else None
