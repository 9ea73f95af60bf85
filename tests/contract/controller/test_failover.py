"""Leaders of a shared journal are killed or stopped, and its database is, while heads write."""

from __future__ import annotations

from tests.contract.controller import failover
from tests.postgres import Cluster


async def test_what_was_answered_stays_and_no_grant_goes_back(
    first: dict[str, str], second: dict[str, str], own_cluster: Cluster
) -> None:
    async with failover.running([first, second], own_cluster) as rig:
        await failover.go_through(rig, faults=len(failover.FAULTS))
