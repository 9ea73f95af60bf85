"""What the mesh has of EC2, and what it may have: orders, answers and looks in; what is gone and
what is to be ended out.

An order counts from before it is sent until a look has shown what came of it: an answer that was
lost may have started an instance, and what was started may not be shown at once. So nothing that is
paid for is ever left out of what the bounds are held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from math import inf

from services.common.errors import Unavailable
from services.controller.providers.ec2.bounds import Bounds
from services.controller.providers.ec2.inventory import INTERRUPTED, Instance, State
from services.controller.providers.ec2.offers import Ware
from services.controller.providers.ec2.table import Table

NOT_LOOKED = "what runs already is not known yet"


@dataclass(slots=True)
class Order:
    """A node that was ordered and that no look has shown yet."""

    node_id: str
    offer_id: str
    dollars_per_hour: float
    instance_ids: tuple[str, ...] = ()
    """That EC2 answered; none while it has not."""
    answered_s: float | None = None
    """When it answered, or when nobody waited for its answer any more."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A node's instance has ended."""

    node_id: str
    reason: str
    interrupted: Instance | None = None
    """The market took it."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look."""

    gone: tuple[Gone, ...] = ()
    came_to_nothing: tuple[str, ...] = ()
    """Nodes whose order got no answer, and of which nothing is to be seen."""
    to_end: Mapping[str, str] = field(default_factory=dict)
    """Instances that are nobody's node, and why."""


class Holdings:
    """The instances that carry the mesh's tag, and the orders that are on their way."""

    def __init__(self, table: Table, bounds: Bounds, *, consistency_s: float) -> None:
        """What is started may be missing from a look for `consistency_s`."""
        self._table = table
        self._bounds = bounds
        self._consistency_s = consistency_s
        self._instances: dict[str, Instance] = {}
        """Those that are not over, by id."""
        self._missing_s: dict[str, float] = {}
        """Instances that a look did not show, and since when."""
        self._orders: dict[str, Order] = {}
        self._nodes: dict[str, str] = {}
        """The instance that is each node; others of its name are too many."""
        self._leaving: set[str] = set()
        """Nodes that are to end."""
        self._first_look_s: float | None = None
        self._looked_s = -inf
        """When the newest look began."""

    # What is asked

    @property
    def is_open(self) -> bool:
        """It is known what runs: looks were made so far apart that whatever a controller before
        this one had ordered is to be seen."""
        first_s = self._first_look_s
        return first_s is not None and self._looked_s >= first_s + self._consistency_s

    def paid(self) -> list[float]:
        """Dollars an hour, at most, of each that runs or may run."""
        running = [
            self._table.dollars_per_hour(one.instance_type)
            for one in self._instances.values()
            if one.is_paid
        ]
        for order in self._orders.values():
            unseen = len(set(order.instance_ids) - self._instances.keys())
            running += [order.dollars_per_hour] * (unseen if order.instance_ids else 1)
        return running

    def holds(self, node_id: str) -> bool:
        return node_id in self._nodes or node_id in self._orders

    def instance_of(self, node_id: str) -> Instance | None:
        """What a node runs on, once a look has shown it."""
        return self._instances.get(self._nodes.get(node_id, ""))

    def instance_id_of(self, node_id: str) -> str:
        """Empty while EC2 has not answered."""
        order = self._orders.get(node_id)
        named = order.instance_ids[0] if order is not None and order.instance_ids else ""
        return self._nodes.get(node_id, named)

    def node_of(self, instance_id: str) -> str:
        """Empty for an instance that is nobody's node."""
        for node_id, known in self._nodes.items():
            if known == instance_id:
                return node_id
        for order in self._orders.values():
            if instance_id in order.instance_ids:
                return order.node_id
        return ""

    def offer_of(self, node_id: str) -> str:
        """Where it came from, which may be another zone than was ordered; the order's while
        nothing is to be seen of it."""
        instance, order = self.instance_of(node_id), self._orders.get(node_id)
        if instance is None:
            return "" if order is None else order.offer_id
        ware = Ware.of(instance.offer_id)
        if ware is None or not instance.zone_id:
            return instance.offer_id
        return Ware(instance.pool, ware.market).offer_id

    def instance_ids_of(self, node_id: str) -> tuple[str, ...]:
        """All that carry its name and are not over."""
        order = self._orders.get(node_id)
        ordered = () if order is None else order.instance_ids
        named = (one.instance_id for one in self._instances.values() if one.node_id == node_id)
        return tuple(dict.fromkeys((*ordered, *named)))

    def on_spot(self) -> dict[str, int]:
        """Instances that live and may be taken, by their pool."""
        return Counter(
            one.pool.name for one in self._instances.values() if one.is_paid and one.is_spot
        )

    # What happens

    def order(self, node_id: str, offer_id: str, dollars_per_hour: float) -> Order:
        """A node is about to be ordered. Raises Unavailable while it is not known what runs, and
        ResourceExhausted for what the bounds do not allow."""
        if not self.is_open:
            raise Unavailable(NOT_LOOKED, field="ec2")
        self._bounds.admit(self.paid(), dollars_per_hour)
        order = self._orders[node_id] = Order(node_id, offer_id, dollars_per_hour)
        return order

    def started(self, node_id: str, instance_ids: Iterable[str], now_s: float) -> None:
        """EC2 answered: these were started for the order."""
        order = self._orders.get(node_id)
        if order is not None:
            order.instance_ids, order.answered_s = tuple(instance_ids), now_s

    def refused(self, node_id: str) -> None:
        """EC2 answered: nothing was started."""
        self._orders.pop(node_id, None)

    def unanswered(self, node_id: str, now_s: float) -> None:
        """Nobody waits for EC2's answer any more; something may have been started."""
        order = self._orders.get(node_id)
        if order is not None:
            order.answered_s = now_s

    def call_off(self, node_id: str) -> None:
        """The node is to end: what carries its name is to be ended, for as long as it is paid."""
        if self.holds(node_id):
            self._leaving.add(node_id)

    def is_called_off(self, node_id: str) -> bool:
        return node_id in self._leaving

    def adopt(self, node_id: str, instance_id: str, now_s: float) -> None:
        """A controller before this one knew this instance as the node: as if it had just been
        answered, for a look may not show yet what was started a moment ago."""
        if not self.holds(node_id):
            dearest = self._table.dearest_per_hour
            self._orders[node_id] = Order(node_id, "", dearest, (instance_id,), now_s)

    def looked(self, seen: Iterable[Instance], begun_s: float, known: Set[str] | None) -> Looked:
        """All instances with the mesh's tag, as they were shown to who began to look then; `known`
        are the nodes that the cluster knows, None while it does not know itself."""
        self._first_look_s = begun_s if self._first_look_s is None else self._first_look_s
        self._looked_s = max(self._looked_s, begun_s)
        shown = {one.instance_id: one for one in seen}
        over = {one.instance_id: one for one in shown.values() if one.is_over}
        self._remember({k: one for k, one in shown.items() if k not in over}, over, begun_s)
        gone = [*self._settle(over, begun_s), *self._ended(over)]
        nothing = tuple(self._came_to_nothing(begun_s))
        for one in sorted(self._instances.values(), key=_age):
            if one.is_paid and one.node_id and one.node_id not in self._orders:
                self._nodes.setdefault(one.node_id, one.instance_id)
        self._leaving = {node_id for node_id in self._leaving if self.holds(node_id)}
        return Looked(tuple(gone), nothing, self._to_end(known) | _stopped(over))

    def _remember(
        self, live: dict[str, Instance], over: dict[str, Instance], begun_s: float
    ) -> None:
        """What a look does not show may be there all the same, for a while."""
        for instance_id in live.keys() | over.keys():
            self._missing_s.pop(instance_id, None)
        for instance_id, one in self._instances.items():
            if instance_id in live or instance_id in over:
                continue
            since_s = self._missing_s.setdefault(instance_id, begun_s)
            if begun_s < since_s + self._consistency_s:
                live[instance_id] = one
            else:
                del self._missing_s[instance_id]
        self._instances = live

    def _settle(self, over: Mapping[str, Instance], begun_s: float) -> Iterable[Gone]:
        """An order is over once each instance of it was shown, or would have been."""
        for order in list(self._orders.values()):
            if order.answered_s is None:
                continue
            if not order.instance_ids:
                named = (one for one in self._instances.values() if one.node_id == order.node_id)
                order.instance_ids = tuple(one.instance_id for one in sorted(named, key=_age))
            ids = order.instance_ids
            seen = [one for one in ids if one in self._instances]
            late = self._is_late(order.answered_s, begun_s)
            if not ids or not (late or all(one in seen or one in over for one in ids)):
                continue
            if seen:
                self._nodes[order.node_id] = seen[0]
            del self._orders[order.node_id]
            if not seen:
                self._nodes.pop(order.node_id, None)
                yield _gone(order.node_id, next((over[one] for one in ids if one in over), None))

    def _ended(self, over: Mapping[str, Instance]) -> Iterable[Gone]:
        for node_id, instance_id in list(self._nodes.items()):
            if instance_id not in self._instances:
                del self._nodes[node_id]
                self._orders.pop(node_id, None)
                yield _gone(node_id, over.get(instance_id))

    def _came_to_nothing(self, begun_s: float) -> Iterable[str]:
        for order in list(self._orders.values()):
            answered_s = order.answered_s
            if (
                not order.instance_ids
                and answered_s is not None
                and self._is_late(answered_s, begun_s)
            ):
                del self._orders[order.node_id]
                yield order.node_id

    def _is_late(self, answered_s: float, begun_s: float) -> bool:
        """A look that began then shows all that was started."""
        return begun_s > answered_s + self._consistency_s

    def _to_end(self, known: Set[str] | None) -> dict[str, str]:
        """Why each of these is to be ended."""
        found: dict[str, str] = {}
        for instance_id, one in self._instances.items():
            order = self._orders.get(one.node_id)
            if not one.is_paid:
                continue
            if one.instance_type not in self._table.types:
                found[instance_id] = "its type is not one that may be bought"
            elif one.node_id in self._leaving:
                found[instance_id] = "its node is to end"
            elif order is not None:
                continue  # its answer is awaited
            elif self._nodes.get(one.node_id) != instance_id:
                found[instance_id] = "another instance is its node"
            elif known is not None and one.node_id not in known:
                found[instance_id] = "no node of this mesh is known by its name"
        return found


def _stopped(over: Mapping[str, Instance]) -> dict[str, str]:
    """A node that was stopped comes back as nobody's: its disk is paid for, for nothing."""
    return {k: "it was stopped" for k, one in over.items() if one.state is State.STOPPED}


def _age(one: Instance) -> tuple[str, str]:
    """The oldest of those that carry a name is its node."""
    return one.launched, one.instance_id


def _gone(node_id: str, instance: Instance | None) -> Gone:
    if instance is None:
        return Gone(node_id, "its instance is not to be found any more")
    interrupted = instance if instance.reason.startswith(INTERRUPTED) else None
    return Gone(node_id, f"its instance is {instance.state}: {instance.reason}", interrupted)
