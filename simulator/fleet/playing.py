"""A market's events, done to a simulated provider."""

from __future__ import annotations

from services.common.notices import NoticeKind
from services.controller.providers.market_file import MarketEvent
from simulator.processes.provider import SimulatedProvider


class MarketPlay:
    """Remembers whom it has taken: of an offer the oldest go first, each once."""

    def __init__(self, provider: SimulatedProvider) -> None:
        self._provider = provider
        self._taken: set[str] = set()

    def happens(self, event: MarketEvent) -> tuple[str, ...]:
        """Another count or price, or nodes that are taken: these."""
        provider = self._provider
        if not event.take:
            count, price = event.count, event.price_per_hour
            provider.change(event.offer_id, count=count, price_per_hour=price)
            return ()
        running = [
            node_id
            for node_id, process in provider.nodes.items()
            if process.alive and provider.offer_of(node_id) == event.offer_id
        ]
        oldest = [node_id for node_id in running if node_id not in self._taken][: event.take]
        self._taken.update(oldest)
        provider.take(oldest, event.notice_s, NoticeKind.SPOT)
        return tuple(oldest)
