"""How many generations may be followed at once, and how many of one model and of one tenant.

Of the places there are, each model has half of its equal share to itself; the rest is for whoever
comes. So a model whose pipelines are gone, and whose readers all wait, keeps nobody from another.

Of the last quarter, a tenant gets only what keeps it within its part, by weight, among those that
have any places. So one that floods keeps nobody from another, and one that is alone has all but
that. Who is nobody's tenant shares with none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from services.common.errors import ResourceExhausted


class Admission:
    """Counts places by model."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()
        self._of_tenants: Counter[str] = Counter()
        self._weights: dict[str, int] = {}
        """Of those that have places."""

    @property
    def total(self) -> int:
        """Places taken."""
        return self._taken.total()

    def of(self, model_id: str) -> int:
        """Places taken by one model."""
        return self._taken[model_id]

    def check(self, model_id: str, deployed: Iterable[str]) -> None:
        """Raises ResourceExhausted where there is no place for one more of the model."""
        if self.total >= self._most:
            raise ResourceExhausted(f"{self._most} generations are followed already")
        names = set(deployed)
        own = self._most // (2 * len(names)) if len(names) > 1 else 0
        others = (max(0, own - self._taken[name]) for name in names - {model_id})
        free = self._most - self.total - sum(others)
        if free <= 0 and not (model_id in names and self._taken[model_id] < own):
            raise ResourceExhausted(
                f"{self._taken[model_id]} generations of {model_id} are followed already; the "
                "places that are left are other models'",
                field="model",
            )

    def check_tenant(self, tenant: str, weight: int) -> None:
        """Raises ResourceExhausted where the places that are left are other tenants'."""
        if not tenant or self.total < self._most - self._most // 4:
            return
        weights = sum({**self._weights, tenant: weight}.values())
        alone = weights == weight
        if alone or (self._of_tenants[tenant] + 1) * weights > self._most * weight:
            raise ResourceExhausted(
                f"{self._of_tenants[tenant]} generations of this tenant are followed already; the "
                "places that are left are other tenants'"
            )

    def take(self, model_id: str, tenant: str, weight: int) -> None:
        """One more."""
        self._taken[model_id] += 1
        self._of_tenants[tenant] += 1
        self._weights[tenant] = weight

    def leave(self, model_id: str, tenant: str) -> None:
        """One less."""
        self._taken[model_id] -= 1
        if self._taken[model_id] <= 0:
            del self._taken[model_id]
        self._of_tenants[tenant] -= 1
        if self._of_tenants[tenant] <= 0:
            del self._of_tenants[tenant], self._weights[tenant]
