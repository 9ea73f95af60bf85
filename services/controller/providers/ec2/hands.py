"""The one place where instances are started and ended: what is bought keeps to the bounds, and what
is ended carries the mesh's tag."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.common.errors import FailedPrecondition
from services.controller.providers.ec2.calls import Calls
from services.controller.providers.ec2.failures import Refusal, worst
from services.controller.providers.ec2.holdings import Holdings
from services.controller.providers.ec2.inventory import MESH_TAG, instances_of

_log = logging.getLogger(__name__)


class Hands:
    """Nothing else here calls what costs or ends anything."""

    def __init__(
        self, ec2: Calls, holdings: Holdings, *, mesh: str, clock: Callable[[], float]
    ) -> None:
        self._ec2 = ec2
        self._holdings = holdings
        self._mesh = mesh
        self._clock = clock

    async def start(
        self, node_id: str, offer_id: str, dollars_per_hour: float, fleet: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Orders a node by these arguments of CreateFleet; the instances that were started. Raises
        ResourceExhausted for what the bounds do not allow, and Refusal."""
        self._holdings.order(node_id, offer_id, dollars_per_hour)
        try:
            answer = await self._ec2.call("create_fleet", **fleet)
        except Refusal as refusal:
            if refusal.in_doubt:
                self._holdings.unanswered(node_id, self._clock())
            else:
                self._holdings.refused(node_id)
            raise
        except BaseException:  # cancelled: the call goes on in its thread
            self._holdings.unanswered(node_id, self._clock())
            raise
        started = [i for one in answer.get("Instances", ()) for i in one.get("InstanceIds", ())]
        if not started:
            self._holdings.refused(node_id)
            errors = answer.get("Errors", ())
            raise worst([(e.get("ErrorCode", ""), e.get("ErrorMessage", "")) for e in errors])
        self._holdings.started(node_id, started, self._clock())
        return tuple(started)

    async def end(self, instance_ids: Sequence[str], *, at_once: bool) -> tuple[str, ...]:
        """Ends those of them that carry the mesh's tag, as EC2 shows them now; `at_once`: without
        their shutting down first. Raises FailedPrecondition where none does, and Refusal."""
        pages = await self._ec2.pages(
            "describe_instances",
            Filters=[
                {"Name": "instance-id", "Values": list(instance_ids)},
                {"Name": f"tag:{MESH_TAG}", "Values": [self._mesh]},
            ],
        )
        shown = [one for page in pages for one in instances_of(page, self._mesh, {})]
        ours = [one.instance_id for one in shown if one.instance_id in instance_ids]
        if not ours:
            raise FailedPrecondition("no instance of this mesh", field="node_id")
        if len(ours) < len(instance_ids):
            _log.warning("instances without the mesh's tag are left alone", extra={"ended": ours})
        await self._ec2.call("terminate_instances", InstanceIds=ours, SkipOsShutdown=at_once)
        return tuple(ours)
