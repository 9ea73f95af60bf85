"""Smooth weighted round-robin over pipelines, corrected by live load.

A turn goes among the pipelines whose running generations are below their share of all that run,
the new one counted. One that is at its share sits the turn out, and gathers no credit meanwhile:
what it did not get while it was busy is not owed to it later.

Source: the smooth weighted round-robin of nginx (each turn every weight is added to its
pipeline's credit, the richest is picked and pays the sum).

A pipeline that has a prompt's beginning computed is preferred, out of its turn and above its share,
as far as what it saves is worth more than the places that it is above. It is never more than
MOST_ABOVE above its share for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from services.common.exchange import Route

LEAST_SAVED = 128
"""Positions of a prompt below which nobody is preferred: an instruction that all prompts have would
keep them all in one place."""
PLACE_POSITIONS = 512
"""Positions of a prompt whose computing costs its reader about what one more generation beside it
does: a step with a full prompt chunk takes several times as long as one without."""
MOST_ABOVE = 0.25
"""Of its share, or one generation if that is more."""
_NOTHING: Mapping[str, int] = MappingProxyType({})


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

    def routes_of(self, model_id: str) -> list[Route]:
        """The pipelines that serve the model."""
        return [r for r in self._routes if r.model.model_id == model_id]

    def pick(
        self,
        model_id: str,
        found: Mapping[str, int] = _NOTHING,
        among: Sequence[Route] | None = None,
    ) -> Route | None:
        """The pipeline for the next generation, of those that serve the model, or of these; None
        while there is none. `found`: positions of its prompt that are computed already, by
        formation."""
        routes = self.routes_of(model_id) if among is None else among
        if not routes:
            return None
        total = sum(r.throughput_tokens_per_s for r in routes)
        shares = {
            r.formation_id: r.throughput_tokens_per_s / total if total > 0 else 1 / len(routes)
            for r in routes
        }
        turn = self._turn(routes, shares, found)
        for route in turn:
            self._credit[route.formation_id] += shares[route.formation_id]
        best = max(turn, key=lambda r: self._credit[r.formation_id])
        self._credit[best.formation_id] -= sum(shares[r.formation_id] for r in turn)
        return best

    def _turn(
        self, routes: Sequence[Route], shares: Mapping[str, float], found: Mapping[str, int]
    ) -> list[Route]:
        """Those whose turn it is: who is below its share, or who is preferred."""
        running = {f: self._running.get(f, 0) for f in shares}
        with_new = sum(running.values()) + 1
        above = {f: running[f] - share * with_new for f, share in shares.items()}
        below = [r for r in routes if above[r.formation_id] < 0]
        worth = {
            f: saved - (PLACE_POSITIONS * (above[f] + 1) if above[f] >= 0 else 0)
            for f, saved in found.items()
            if f in shares and above[f] < max(1.0, MOST_ABOVE * shares[f] * with_new)
        }
        most = max(worth.values(), default=0)
        if most < LEAST_SAVED:
            return below
        preferred = [r for r in routes if worth.get(r.formation_id) == most]
        return [r for r in preferred if r in below] or preferred

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
