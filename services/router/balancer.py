"""Smooth weighted round-robin over pipelines, corrected by live load.

Source: the smooth weighted round-robin of nginx (each turn every weight is added to its
pipeline's credit, the richest is picked and pays the sum), here with the weight scaled by how far
the pipeline's own share of the running generations is from its fair one.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.exchange import Route

MAX_CORRECTION = 4.0


class Balancer:
    """Picks a pipeline for each new generation and counts those that run."""

    def __init__(self) -> None:
        self._routes: tuple[Route, ...] = ()
        self._credit: dict[str, float] = {}
        self._running: dict[str, int] = {}

    def update(self, routes: Sequence[Route]) -> None:
        """Replaces all routes."""
        self._routes = tuple(routes)
        self._credit = {r.formation_id: self._credit.get(r.formation_id, 0.0) for r in routes}

    def pick(self, model_id: str) -> Route | None:
        """The pipeline for the next generation; None while no pipeline serves the model."""
        routes = [r for r in self._routes if r.model.model_id == model_id]
        if not routes:
            return None
        total = sum(r.throughput_tokens_per_s for r in routes)
        running = sum(self._running.get(r.formation_id, 0) for r in routes)
        weights = []
        for route in routes:
            share = route.throughput_tokens_per_s / total if total > 0 else 1 / len(routes)
            fair = share * running + 1
            correction = fair / (self._running.get(route.formation_id, 0) + 1)
            bounded = min(MAX_CORRECTION, max(1 / MAX_CORRECTION, correction))
            weights.append(share * bounded)
        for route, weight in zip(routes, weights, strict=True):
            self._credit[route.formation_id] += weight
        best = max(routes, key=lambda r: self._credit[r.formation_id])
        self._credit[best.formation_id] -= sum(weights)
        return best

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

    def models(self) -> list[Route]:
        """One route for each model that is served."""
        return list({r.model.model_id: r for r in self._routes}.values())
