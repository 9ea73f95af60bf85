"""A provider on the filtered cloud, with the pauses of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from services.controller.core.cluster.market import Offer, OffersChanged, ProviderEvent
from services.controller.providers.ec2.making import make_provider
from services.controller.providers.ec2.provider import Ec2Provider
from services.controller.providers.ec2.settings import Ec2Settings

WAIT_S = 60.0
T = TypeVar("T", bound=ProviderEvent)


@dataclass
class Controller:
    """Whose provider it is: what it knows, and where it remembers."""

    directory: Path
    types_file: Path
    mesh: str = field(default_factory=lambda: f"mesh-{uuid4().hex[:8]}")
    known: set[str] | None = None
    plan: int = 7

    def settings(self, **more: Any) -> Ec2Settings:
        given = {
            "mesh": self.mesh,
            "launch_template": "node",
            "types_file": self.types_file,
            "first_nodes": "g6e.xlarge:1",
            "look_s": 0.2,
            "price_s": 0.2,
            "score_s": 0.0,
            "consistency_s": 0.0,
            "call_limit_s": 3.0,
            "queue_wait_s": 1,
        }
        return Ec2Settings(**{**given, **more})

    @asynccontextmanager
    async def provider(self, **more: Any) -> AsyncIterator[Ec2Provider]:
        """Of one life of the controller."""
        provider = make_provider(
            self.settings(**more),
            directory=self.directory,
            environment=lambda offer: {"SPEED": str(offer.shape.relative_speed)},
            plan=lambda: self.plan,
            known=lambda: self.known,
        )
        async with provider.running():
            yield provider
            await provider.close()


def offer(provider: Ec2Provider, offer_id: str) -> Offer:
    return next(one for one in provider.offers() if one.offer_id == offer_id)


async def said(provider: Ec2Provider, kind: type[T], fits: Callable[[T], bool] = bool) -> T:
    """The next event of this kind that fits; other offers may come before it."""
    async with asyncio.timeout(WAIT_S):
        async for event in provider.events():
            if isinstance(event, kind) and fits(event):
                return event
            assert isinstance(event, OffersChanged), event
    raise AssertionError("it was closed")
