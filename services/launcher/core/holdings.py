"""The containers of a mesh's engines: those that run, and the places that launches take."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set

from services.common.errors import ResourceExhausted
from services.launcher.core.containers import Container


class Holdings:
    """At most `most` at a time, with those that are being launched."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: dict[str, Container] = {}
        """By node."""
        self._orders: dict[str, str] = {}
        """Nodes that are being launched, and the device of each."""

    @property
    def running(self) -> tuple[Container, ...]:
        return tuple(self._running.values())

    @property
    def devices(self) -> Set[str]:
        """Those that are some node's."""
        owned = (one.device for one in self._running.values())
        return {device for device in (*owned, *self._orders.values()) if device}

    def of_node(self, node_id: str) -> Container | None:
        return self._running.get(node_id)

    def is_ordered(self, node_id: str) -> bool:
        return node_id in self._orders

    def order(self, node_id: str, device: str) -> None:
        """A node is about to be launched. Raises ResourceExhausted beyond the bound."""
        if len(self._running.keys() | self._orders.keys()) >= self._most:
            raise ResourceExhausted(f"{self._most} containers run: no more may", field="containers")
        self._orders[node_id] = device

    def settled(self, node_id: str) -> None:
        """Whatever came of its launch."""
        self._orders.pop(node_id, None)

    def started(self, container: Container) -> bool:
        """Whether that is new."""
        new = self._running.get(container.node_id) != container
        self._running[container.node_id] = container
        return new

    def ended(self, container_id: str) -> Container | None:
        """The node's container, if it was one that ran."""
        for node_id, one in self._running.items():
            if one.container_id == container_id:
                return self._running.pop(node_id)
        return None

    def looked(
        self, seen: Collection[Container], known: Iterable[Container]
    ) -> tuple[Container, ...]:
        """These run; of those that were known when it was looked, the ones that do not."""
        shown = {one.container_id for one in seen}
        missing = tuple(one for one in known if one.container_id not in shown)
        for one in seen:
            self._running[one.node_id] = one
        return tuple(one for one in missing if self._running.get(one.node_id) == one)
