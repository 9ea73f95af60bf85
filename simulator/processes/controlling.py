"""What the parts of a simulated controller have of it: its cores, its clock, and who looks on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from services.common.exchange import Checkpoint, Grant, ResumeQuestion
from services.controller.core.cluster.actions import Action, FormPipeline, LogEvent, TerminateNode
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.market import Market, Offer, ProviderEvent
from services.controller.core.cluster.plan import Plan
from services.controller.core.cluster.question import NextPlan, Question
from services.controller.core.cluster.succession import Replanned
from services.controller.core.departure.departure import Look
from services.controller.core.departure.move import Rates
from services.controller.core.departure.move import Stream as Leaving
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerEvent, Outcome
from services.controller.core.ledger.records import Record
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Reply

PLAN_S = 1.0
"""The longest that placement may take to answer."""
CALL_S = 2.0
"""The longest that an engine may take to answer."""


class ControllerMonitor(Protocol):
    """Sees what the controller decides."""

    def restarted(self) -> None: ...
    def durable(self, ledger: Ledger, records: Sequence[Record]) -> None: ...
    def before(self, ledger: Ledger, checkpoint: Checkpoint) -> Any: ...
    def checkpoint(
        self, ledger: Ledger, checkpoint: Checkpoint, outcome: Outcome[Any], before: Any
    ) -> None: ...
    def granted(
        self, ledger: Ledger, question: ResumeQuestion, outcome: Outcome[Grant]
    ) -> None: ...
    def ledger_event(self, event: LedgerEvent) -> None: ...
    def cluster_event(self, cluster: Cluster, event: LogEvent) -> None: ...
    def dissolves(self, incarnation: str, formation_id: str) -> None: ...
    def dissolved(self, incarnation: str, formation_id: str) -> None: ...
    def departs(
        self, formation_id: str, streams: Sequence[Leaving], rates: Rates, look: Look, end_s: float
    ) -> None: ...
    def forms(self, form: FormPipeline) -> None: ...
    def ends_node(self, cluster: Cluster, end: TerminateNode) -> None: ...
    def hears(self, event: ProviderEvent, market: Market) -> None: ...
    def orders(self, node_id: str, offer: Offer, market: Market) -> None: ...
    def operator_asks(self) -> None: ...
    def operator_told(self, replanned: Replanned | None) -> None: ...
    def asks(self, question: Question) -> None: ...
    def answers(self, question: Question, answer: NextPlan) -> None: ...
    def adopts(self, plan: Plan) -> dict[str, str]: ...
    def adopted(self, serving: dict[str, str]) -> None: ...


class Controlling(Process, ABC):
    """One life of a controller, as its parts see it."""

    environment: Environment
    monitor: ControllerMonitor
    ledger: Ledger
    cluster: Cluster

    @abstractmethod
    def stir(self) -> None:
        """Something happened to the core, which is asked in a moment."""

    @abstractmethod
    def act(self, actions: Sequence[Action]) -> None:
        """Does what the core asks."""

    def ask(
        self,
        incarnation: str,
        method: str,
        args: tuple[Any, ...],
        answer: Reply = lambda _: None,
        timeout_s: float = CALL_S,
    ) -> None:
        """Calls an engine."""
        self.call(incarnation, method, args, answer, timeout_s)
