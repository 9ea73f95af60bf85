"""What nodes are to be had and at what price, who runs on which offer, and what that costs.

A provider is a market: it has offers, and it tells what happens to them and to the nodes that were
launched from them. What it says is looked at before it counts: an absurd offer is dropped, by the
field that is wrong, and so is what is beyond `MAX_OFFERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

from services.common.errors import InvalidArgument, ResourceExhausted
from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.common.speeds import MAX_SPEED
from services.controller.core.cluster.pauses import LONGEST_S, Pauses

MAX_OFFERS = 1000
"""More are not looked at."""
MAX_COUNT = 10_000
"""Nodes of one offer."""
MAX_PRICE_PER_HOUR = 1e6
MAX_INTERRUPTIONS_PER_HOUR = 3600.0
MAX_LAUNCH_S = 600.0
MAX_NAME_CHARS = 128
MAX_NOTICE_S = 86_400.0
NO_CAPACITY = "no capacity"
OVER_BUDGET = "the budget is spent by what runs"


@dataclass(frozen=True, slots=True)
class Offer:
    """Nodes of one kind, as somebody offers them; `check` says what a sound one looks like."""

    offer_id: str
    instance_type: str
    shape: NodeShape
    count: int
    """How many of them may run at once, those that run included."""
    price_per_hour: float | None = None
    """Of one node; None where nobody names a price."""
    pool: str = ""
    """What is taken away together."""
    spot: bool = False
    """It may be taken away; otherwise it is on demand."""
    interruptions_per_hour: float = 0.0
    """Of one node, as the market tells it."""
    launch_s: float = 0.0
    """From the order to the start of the node's process."""
    declared: bool = False
    """Its nodes are told their shape, and do not find it themselves."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider is able to do."""

    launches: bool = False
    ends: bool = False
    gives_notice: bool = False
    """It can be told to take a node away behind a notice, as a cloud does by itself."""
    declares: bool = False
    """Its nodes are played: what it says of one counts, whatever the machine is."""


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node has ended, for whatever reason."""

    node_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeNotice:
    """A node will be taken away, or is likely to be."""

    node_id: str
    deadline_s: float
    """On the controller's clock, which every other time is on: a provider that is told a wall time
    turns it into this one as soon as it hears it. Of no meaning for what is advice."""
    kind: NoticeKind

    def left_s(self, now_s: float) -> float:
        """How long it is there yet, at most `MAX_NOTICE_S`; raises InvalidArgument."""
        if not isfinite(self.deadline_s):
            raise InvalidArgument("a deadline is a time", field="deadline_s")
        return min(max(0.0, self.deadline_s - now_s), MAX_NOTICE_S)


@dataclass(frozen=True, slots=True)
class OffersChanged:
    """The offers are others now."""

    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """A launch came to nothing: no node runs, and none will come of it."""

    node_id: str
    reason: str
    retry_after_s: float = 0.0
    """Its offer is of no use before that."""


ProviderEvent = NodeGone | NodeNotice | OffersChanged | LaunchFailed


@dataclass(frozen=True, slots=True)
class Dropped:
    """An offer that does not count."""

    offer_id: str
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class MarketChange:
    """What an update of the offers came to."""

    changed: tuple[str, ...] = ()
    """Offers that are new, other, or gone."""
    dropped: tuple[Dropped, ...] = ()


class Market:
    """The offers that count, and the nodes that run on them."""

    def __init__(self, longest_pause_s: float = LONGEST_S) -> None:
        self._offers: dict[str, Offer] = {}
        self._withdrawn: dict[str, Offer] = {}
        """Offered no more; nodes of them run on."""
        self._of_node: dict[str, str] = {}
        self._running: Counter[str] = Counter()
        self._pauses = Pauses(longest_pause_s)

    def update(self, offers: Sequence[Offer]) -> MarketChange:
        """These are all offers now; the same again changes nothing."""
        before, now, dropped = self._offers, dict[str, Offer](), list[Dropped]()
        for offer in offers[:MAX_OFFERS]:
            try:
                check(offer)
                if offer.offer_id in now:
                    raise InvalidArgument("another offer has this id", field="offer_id")
            except InvalidArgument as error:
                dropped.append(Dropped(offer.offer_id[:MAX_NAME_CHARS], error.field, error.message))
            else:
                now[offer.offer_id] = offer
        if len(offers) > MAX_OFFERS:
            reason = f"{len(offers) - MAX_OFFERS} offers beyond {MAX_OFFERS}"
            dropped.append(Dropped("", "offers", reason))
        for offer_id, offer in now.items():
            if offer_id in before and offer.count > before[offer_id].count:
                self._pauses.end(offer_id)
        known = self._withdrawn | before
        self._withdrawn = {
            name: offer for name, offer in known.items() if name not in now and self._running[name]
        }
        self._pauses.forget_but(now)
        self._offers = now
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        return MarketChange(tuple(changed), tuple(dropped))

    def choose(self, shape: NodeShape, now_s: float) -> Offer | None:
        """The cheapest offer of this very shape that has a node left, spot before on-demand at the
        same price; None where there is none, or where all of them said no a moment ago."""
        fit = (
            offer
            for offer in self._offers.values()
            if offer.shape == shape
            and self.open_count(offer.offer_id)
            and not self._pauses.goes_on(offer.offer_id, now_s)
        )
        return min(fit, key=_rank, default=None)

    def named(self, offer_id: str, shape: NodeShape, now_s: float) -> Offer | None:
        """The offer of this name where it has a node left and has not said no a moment ago; else
        the one that `choose` finds."""
        if self.open_count(offer_id) and not self._pauses.goes_on(offer_id, now_s):
            return self._offers[offer_id]
        return self.choose(shape, now_s)

    def launch(self, node_id: str, offer_id: str) -> None:
        """A node of the offer is ordered. Raises ResourceExhausted when none is left of it."""
        if self._of_node.get(node_id) == offer_id:
            return
        if not self.open_count(offer_id):
            raise ResourceExhausted(NO_CAPACITY, field="offer")
        self.found(node_id, offer_id)

    def found(self, node_id: str, offer_id: str) -> None:
        """A node runs on an offer, whatever the offer says of it."""
        self.ended(node_id)
        if offer_id:
            self._of_node[node_id] = offer_id
            self._running[offer_id] += 1

    def came(self, offer_id: str) -> None:
        """A node that was launched from the offer is there: the offer kept its word."""
        self._pauses.kept_its_word(offer_id)

    def refused(self, node_id: str, retry_after_s: float, now_s: float) -> int:
        """The launch came to nothing: its offer is left alone for a while. Returns as `shun`."""
        refusals = self.shun(node_id, retry_after_s, now_s)
        self.ended(node_id)
        return refusals

    def shun(self, node_id: str, retry_after_s: float, now_s: float) -> int:
        """The offer that a node was launched from is left alone for a while, which doubles from one
        to the next; not where nobody names its price: such offers are all there is. Returns how
        many in a row that makes, 0 where it is no new one."""
        offer_id = self._of_node.get(node_id, "")
        offer = self._offers.get(offer_id)
        priced = offer is not None and offer.price_per_hour is not None
        if not priced or not retry_after_s > 0:  # nor is NaN a while
            return 0
        return self._pauses.begin(offer_id, min(retry_after_s, MAX_LAUNCH_S), now_s)

    def ended(self, node_id: str) -> None:
        """Nothing runs there any more, or is going to."""
        offer_id = self._of_node.pop(node_id, None)
        if offer_id is None:
            return
        self._running[offer_id] -= 1
        if not self._running[offer_id]:
            del self._running[offer_id]
            self._withdrawn.pop(offer_id, None)

    # What others see

    def offers(self) -> tuple[Offer, ...]:
        """Those that count."""
        return tuple(self._offers.values())

    def offer(self, offer_id: str) -> Offer | None:
        """As it is, or was when it was last offered and nodes of it run."""
        return self._offers.get(offer_id) or self._withdrawn.get(offer_id)

    def offer_id_of(self, node_id: str) -> str:
        """What a node runs on; empty when that is not known."""
        return self._of_node.get(node_id, "")

    def shut(self) -> dict[str, float]:
        """Offers that said no, and until when they are left alone."""
        return self._pauses.ends_s()

    def running(self, offer_id: str) -> int:
        """Nodes of the offer that run or are ordered."""
        return self._running[offer_id]

    def open_count(self, offer_id: str) -> int:
        """How many more nodes of it are to be had."""
        offer = self._offers.get(offer_id)
        return 0 if offer is None else max(0, offer.count - self._running[offer_id])

    def fits(self, offer_id: str) -> bool:
        """Those that run or are ordered are not more than the offer has by now."""
        offer = self._offers.get(offer_id)
        return offer is not None and self._running[offer_id] <= offer.count

    def affords(self, offer_id: str, budget_per_hour: float) -> bool:
        """One more node of the offer, beside all that run or are ordered, keeps to the budget; 0
        does not bind, nor does a price that is not known."""
        if not budget_per_hour:
            return True
        known = (self._price(name) or 0.0 for name in self._running.elements())
        cost = sum(known) + (self._price(offer_id) or 0.0)
        return cost <= budget_per_hour * (1 + _SLACK)

    def exceeds(self, budget_per_hour: float) -> bool:
        """What runs costs more than this; 0 does not bind."""
        cost = self.cost_per_hour()
        return bool(budget_per_hour and cost and cost > budget_per_hour * (1 + _SLACK))

    def cost_per_hour(self) -> float | None:
        """Of the nodes that run or are ordered; None where a price is not known."""
        return self._sum({name: self._price(name) for name in self._running})

    def on_demand_cost_per_hour(self) -> float | None:
        """What the same nodes would cost on demand, each by the cheapest such offer of its instance
        type; None where there is none."""
        on_demand: dict[str, float] = {}
        for offer in self._offers.values():
            if not offer.spot and offer.price_per_hour is not None:
                cheapest = min(on_demand.get(offer.instance_type, inf), offer.price_per_hour)
                on_demand[offer.instance_type] = cheapest
        found = {name: self.offer(name) for name in self._running}
        return self._sum(
            {k: None if o is None else on_demand.get(o.instance_type) for k, o in found.items()}
        )

    def _price(self, offer_id: str) -> float | None:
        offer = self.offer(offer_id)
        return None if offer is None else offer.price_per_hour

    def _sum(self, prices: dict[str, float | None]) -> float | None:
        known = {name: price for name, price in prices.items() if price is not None}
        if len(known) < len(prices):
            return None
        if not known and all(offer.price_per_hour is None for offer in self._offers.values()):
            return None
        return sum(price * self._running[name] for name, price in known.items())


_SLACK = 1e-9
"""Sums of prices are not exact."""


def check(offer: Offer) -> None:
    """Raises InvalidArgument for an offer that cannot be, naming field and limit."""
    for field, text in (("offer_id", offer.offer_id), ("instance_type", offer.instance_type)):
        if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable():
            raise InvalidArgument(f"{field} has 1 to {MAX_NAME_CHARS} characters", field=field)
    if len(offer.pool) > MAX_NAME_CHARS or not offer.pool.isprintable():
        raise InvalidArgument(f"pool has at most {MAX_NAME_CHARS} characters", field="pool")
    if offer.price_per_hour is not None:
        _check("price_per_hour", offer.price_per_hour, 0, MAX_PRICE_PER_HOUR, over=True)
    _check("count", offer.count, 0, MAX_COUNT)
    hazard = offer.interruptions_per_hour
    _check("interruptions_per_hour", hazard, 0, MAX_INTERRUPTIONS_PER_HOUR)
    _check("launch_s", offer.launch_s, 0, MAX_LAUNCH_S)
    _check("relative_speed", offer.shape.relative_speed, 0, MAX_SPEED, over=True)
    _check("memory_bytes", offer.shape.memory_bytes, 1, 1 << 63)


def _check(field: str, value: float, least: float, most: float, *, over: bool = False) -> None:
    if not least <= value <= most or (over and value == least):  # NaN lies nowhere
        raise InvalidArgument(
            f"{field} lies in {'(' if over else '['}{least:g}, {most:g}]", field=field
        )


def _rank(offer: Offer) -> tuple[float, bool, str]:
    price = inf if offer.price_per_hour is None else offer.price_per_hour
    return price, not offer.spot, offer.offer_id
