"""What a fleet may be played under: production's strategies, and those of systems it is compared
with."""

from __future__ import annotations

from services.controller.core.strategy import STRATEGIES, Strategy

REPARALLELISED = Strategy(
    "reparallelisation", migration=False, concurrent_initialisation=False, uniform=True
)
"""SpotServe's baseline: degrees are chosen anew as nodes come and go, and requests start over."""
SKYSERVE = Strategy("skyserve", migration=False)
"""Replicas of one node each by SkyServe's policy, in the controller's place."""
FLEET_STRATEGIES = STRATEGIES | {one.name: one for one in (REPARALLELISED, SKYSERVE)}
