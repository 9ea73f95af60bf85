"""What is asked of a model at one router, as routers count it and the controller is told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Demand:
    """Counts since the router's start. A request with several choices counts as so many."""

    requests: int = 0
    """That began."""
    input_tokens: int = 0
    """Of their prompts."""
    answers: int = 0
    """That have ended."""
    output_tokens: int = 0
    """Of those answers."""
    open: int = 0
    """Requests that wait for a pipeline, or are being answered, now."""


@dataclass(frozen=True, slots=True)
class TenantDemand:
    """What a tenant with limits asked of one router, refused or not: counts since its start."""

    requests: int
    tokens: int
    """That its requests might have come to."""
    share: float
    """What the router holds of the tenant's limits."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Which part of tenants' limits one router has."""

    routers: int = 0
    """That there are: of limits that are not named each has an equal part. 0: the router was told
    nothing yet, and counts itself alone."""
    by_tenant: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, name: str) -> float:
        """The part of a tenant's limits."""
        return self.by_tenant.get(name, 1.0 / max(1, self.routers))
