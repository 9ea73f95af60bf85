"""Who asks: a tenant, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.generation import PriorityClass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may take, over all its keys and all routers; None: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    streams: int | None = None
    """Generations that somebody follows at once."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whoever holds one of its keys is this one."""

    name: str
    """Empty: a router without keys asks nobody who he is."""
    priority: PriorityClass = PriorityClass.STANDARD
    weight: int = 1
    """Its share against other tenants', where there is not enough for all."""
    limits: Limits = Limits()
    models: frozenset[str] | None = None
    """Those that it may use; None: all."""
    mark: str = ""
    """Goes into ids that are derived of what the tenant sends, so that no other one can guess
    them."""

    def may_use(self, model_id: str) -> bool:
        """Whether the model is there for this tenant."""
        return self.models is None or model_id in self.models


NOBODY = Tenant("")
"""Who asks where nobody is asked for a key."""
