"""The market of a simulated mesh: who offers, starts and ends its nodes, and may lie about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from services.common.errors import FailedPrecondition, ShuntError
from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    NO_CAPACITY,
    LaunchFailed,
    Market,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
)
from simulator.environment.addresses import CONTROLLER
from simulator.environment.environment import Environment
from simulator.environment.network import Process

RETRY_AFTER_S = 1.0
"""What has no capacity is of no use for so long, as it says."""
SECOND_S = 0.4
"""A node that comes twice comes again so much later."""


class Lie(StrEnum):
    """What comes of a launch that the provider says succeeded."""

    NEVER = "never"
    TWICE = "twice"
    OTHER = "other"
    """A node of another shape."""


class SimulatedProvider:
    """A cloud: it is no process of the mesh, and outlives every one of them."""

    def __init__(
        self, environment: Environment, start: Callable[[str, NodeShape], Process]
    ) -> None:
        """`start` makes a node's process."""
        self.environment = environment
        self.failed_launches = self.lost_launches = 0
        self.nodes: dict[str, Process] = {}
        """The newest process of each node, dead or alive."""
        self.launched: list[tuple[float, str]] = []
        """When a launch of which offer was asked for."""
        self.lies: list[Lie] = []
        """What becomes of the next launches."""
        self._start = start
        self._market = Market()
        self._market.update(environment.settings.offers)
        self._ordered: dict[str, Offer] = {}
        self._shapes: dict[str, NodeShape] = {}
        self._twins: dict[str, Process] = {}
        """Those whose name another one has by now."""
        self._notices: dict[str, tuple[float, NoticeKind]] = {}
        """When each node that was given notice is taken away, and what for."""
        self._refuses_until_s: dict[str, float] = {}

    # What is asked of it

    def offers(self) -> tuple[Offer, ...]:
        """What is to be had now."""
        return self._market.offers()

    def offer_of(self, node_id: str) -> str:
        """The offer that a node was launched from; empty when that is not known."""
        return self._market.offer_id_of(node_id)

    def launch(self, node_id: str, offer: Offer) -> None:
        """Starts a node's process, or fails to, or says nothing and starts none."""
        environment, settings = self.environment, self.environment.settings
        now_s = environment.clock.now_s
        self.launched.append((now_s, offer.offer_id))
        refuses_s = self._refuses_until_s.get(offer.offer_id, 0.0) - now_s
        lie = self.lies.pop(0) if self.lies else None
        try:
            self._market.launch(node_id, offer.offer_id)
        except ShuntError as error:
            self._failed(node_id, error.message, RETRY_AFTER_S)
            return
        if refuses_s > 0:
            self._failed(node_id, NO_CAPACITY, refuses_s)
        elif environment.random.random() < settings.launch_lost or lie is Lie.NEVER:
            self.lost_launches += 1
            self._market.ended(node_id)
        elif environment.fails("launch", settings.launch_fails):
            self.failed_launches += 1
            self._failed(node_id, NO_CAPACITY, 0.0)
        else:
            self._ordered[node_id] = offer
            environment.clock.after(offer.launch_s, self._carry_out, node_id, lie)

    def adopt(self, node_id: str) -> bool:
        """Whether a node that an earlier controller launched lives, as far as anybody sees; a
        notice that it was given is given again."""
        process = self.nodes.get(node_id)
        if process is None or not self.environment.settings.exits_seen:
            return True
        if process.alive and node_id in self._notices:
            self._tell_notice(node_id)
        return process.alive

    def terminate(self, node_id: str) -> None:
        """Ends a node's process, or calls off its launch. Raises FailedPrecondition for a node that
        is none of its own."""
        if self._ordered.pop(node_id, None) is not None:
            self._failed(node_id, "called off", 0.0)
            return
        processes = [p for p in (self._twins.get(node_id), self.nodes.get(node_id)) if p]
        living = [process for process in processes if process.alive]
        if not living:
            raise FailedPrecondition("no such node", field="node_id")
        for process in living:
            process.kill()

    # What the market does

    def change(
        self, offer_id: str, *, count: int | None = None, price_per_hour: float | None = None
    ) -> None:
        """An offer has another count or price from now on; what runs of it runs on."""
        self.replace(
            [
                offer
                if offer.offer_id != offer_id
                else replace(
                    offer,
                    count=offer.count if count is None else count,
                    price_per_hour=(
                        offer.price_per_hour if price_per_hour is None else price_per_hour
                    ),
                )
                for offer in self.offers()
            ]
        )

    def replace(self, offers: list[Offer]) -> None:
        """These are the offers from now on, and whatever is said is heard as it is."""
        self._market.update(offers)
        self._say(OffersChanged(tuple(offers)), 0.01)

    def refuse(self, offer_id: str, for_s: float) -> None:
        """Launches of the offer come to nothing, and it says for how long."""
        self._refuses_until_s[offer_id] = self.environment.clock.now_s + for_s

    def in_pool(self, pool: str) -> list[str]:
        """Nodes that live and are taken away together."""
        offers = {offer.offer_id for offer in self.offers() if offer.pool == pool}
        return [
            node_id
            for node_id, process in self.nodes.items()
            if process.alive and self._market.offer_id_of(node_id) in offers
        ]

    def take(self, node_ids: list[str], notice_s: float, kind: NoticeKind) -> None:
        """Takes nodes away; without notice they are killed."""
        for node_id in node_ids:
            if notice_s > 0:
                self.notice(node_id, notice_s, taken=True, kind=kind)
            else:
                self._take_away(self.nodes[node_id])

    def notice(
        self, node_id: str, notice_s: float, *, taken: bool, kind: NoticeKind = NoticeKind.SPOT
    ) -> None:
        """A node will be taken away, or, by what is told of it, is likely to be; of several
        notices the earliest counts. Some lapse."""
        deadline_s = self.environment.clock.now_s + notice_s
        if node_id in self._notices and deadline_s >= self._notices[node_id][0]:
            return
        self._notices[node_id] = deadline_s, kind
        self._tell_notice(node_id)
        if taken:
            self.environment.clock.after(notice_s, self._take_away, self.nodes[node_id])
        else:
            self.environment.clock.after(notice_s, self._lapse, node_id, deadline_s)

    def restart(self, node_id: str) -> None:
        """Killed, and started again under the same node name by something outside."""
        old = self.nodes[node_id]
        old.on_exit = lambda: None
        old.kill()
        self._started(node_id, self._shapes[node_id])

    # What comes of it

    def _carry_out(self, node_id: str, lie: Lie | None) -> None:
        """The time of what was ordered has come, unless it was called off."""
        offer = self._ordered.pop(node_id, None)
        if offer is None:
            return
        if not self._market.fits(offer.offer_id):
            self._failed(node_id, NO_CAPACITY, RETRY_AFTER_S)
            return
        shape = offer.shape
        if lie is Lie.OTHER:
            shape = (
                replace(shape, relative_speed=shape.relative_speed / 2)
                if self.environment.random.random() < 0.5
                else replace(shape, memory_bytes=shape.memory_bytes // 8)
            )
        self._started(node_id, shape)
        if lie is Lie.TWICE:
            self.environment.clock.after(SECOND_S, self._again, node_id, shape)

    def _again(self, node_id: str, shape: NodeShape) -> None:
        first = self.nodes[node_id]
        if first.alive:
            first.on_exit = lambda: None
            self._started(node_id, shape)
            self._twins[node_id] = first

    def _started(self, node_id: str, shape: NodeShape) -> None:
        process = self._start(node_id, shape)
        self._notices.pop(node_id, None)
        process.on_exit = lambda: self._ended(node_id)
        self.nodes[node_id], self._shapes[node_id] = process, shape

    def _take_away(self, process: Process) -> None:
        """At the deadline, ready or not."""
        if process.alive:
            process.kill()

    def _lapse(self, node_id: str, deadline_s: float) -> None:
        if node_id in self._notices and self._notices[node_id][0] == deadline_s:
            del self._notices[node_id]

    def _ended(self, node_id: str) -> None:
        self._market.ended(node_id)
        self._notices.pop(node_id, None)
        if self.environment.settings.exits_seen:
            self._say(NodeGone(node_id, "exit"), 0.02)

    def _failed(self, node_id: str, reason: str, retry_after_s: float) -> None:
        self._market.ended(node_id)
        self._say(LaunchFailed(node_id, reason, retry_after_s), 0.05)

    def _tell_notice(self, node_id: str) -> None:
        self._say(NodeNotice(node_id, *self._notices[node_id]), 0.01)

    def _say(self, event: ProviderEvent, after_s: float) -> None:
        network = self.environment.network
        network.tell(CONTROLLER, "provider_says", event, after_s=after_s)
