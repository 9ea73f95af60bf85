"""Fifty faults of a leader or of its database, one after another, while heads write."""

from __future__ import annotations

import pytest

from tests.contract.controller import failover
from tests.postgres import Cluster

FAULTS = 50


@pytest.mark.timeout(3600)
async def test_fifty_faults_lose_nothing_that_was_answered(
    first: dict[str, str], second: dict[str, str], own_cluster: Cluster
) -> None:
    async with failover.running([first, second], own_cluster) as rig:
        await failover.go_through(rig, FAULTS)
