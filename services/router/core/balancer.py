"""Smooth weighted round-robin over pipelines, corrected by live load.

A turn goes among the pipelines whose running generations are below their share of all that run,
the new one counted. One that is at its share sits the turn out, and gathers no credit meanwhile:
what it did not get while it was busy is not owed to it later.

Source: the smooth weighted round-robin of nginx (each turn every weight is added to its
pipeline's credit, the richest is picked and pays the sum).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.common.exchange import Route


class Balancer:
    """Picks a pipeline for each new generation and counts those that run."""

    def __init__(self) -> None:
        self._routes: tuple[Route, ...] = ()
        self._credit: dict[str, float] = {}
        self._running: dict[str, int] = {}
        self._serving: frozenset[str] | None = None
        """Formations whose heads serve; None before the routes are known."""

    def update(self, routes: Sequence[Route], handing_over: Iterable[str] = ()) -> None:
        """Replaces all routes. `handing_over`: formations that still serve what they have."""
        self._routes = tuple(routes)
        self._serving = frozenset((*(r.formation_id for r in routes), *handing_over))
        self._credit = {r.formation_id: self._credit.get(r.formation_id, 0.0) for r in routes}

    def pick(self, model_id: str) -> Route | None:
        """The pipeline for the next generation; None while no pipeline serves the model."""
        routes = [r for r in self._routes if r.model.model_id == model_id]
        if not routes:
            return None
        total = sum(r.throughput_tokens_per_s for r in routes)
        shares = {
            r.formation_id: r.throughput_tokens_per_s / total if total > 0 else 1 / len(routes)
            for r in routes
        }
        running = {f: self._running.get(f, 0) for f in shares}
        with_new = sum(running.values()) + 1
        below = [r for r in routes if running[r.formation_id] < shares[r.formation_id] * with_new]
        for route in below:
            self._credit[route.formation_id] += shares[route.formation_id]
        best = max(below, key=lambda r: self._credit[r.formation_id])
        self._credit[best.formation_id] -= sum(shares[r.formation_id] for r in below)
        return best

    def serves(self, formation_id: str) -> bool:
        """As far as the controller has told."""
        return self._serving is None or formation_id in self._serving

    def began(self, formation_id: str) -> None:
        """A generation of this router runs there."""
        self._running[formation_id] = self._running.get(formation_id, 0) + 1

    def ended(self, formation_id: str) -> None:
        """It runs there no more."""
        left = self._running.get(formation_id, 0) - 1
        if left > 0:
            self._running[formation_id] = left
        else:
            self._running.pop(formation_id, None)

    def has(self, model_id: str) -> bool:
        """Some pipeline serves the model."""
        return any(route.model.model_id == model_id for route in self._routes)

    def models(self) -> list[Route]:
        """One route for each model that is served."""
        return list({r.model.model_id: r for r in self._routes}.values())
