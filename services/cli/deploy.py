"""`shunt deploy` and `shunt undeploy`: one more model in the running mesh, or one less."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from rich.console import Console
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb

from services.cli import model as models
from services.cli.controller_calls import ControllerAwayError, controller_address, controller_of
from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.mesh_status import controller_status, fault_json
from services.cli.status_table import fault_line

T = TypeVar("T")

CALL_S = 30.0
"""Placement is asked within this."""
READY_S = 600.0
"""Weights are loaded within this."""
LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Wish:
    """What a model's pipelines are to be chosen for."""

    objective: str = "throughput"
    ttft_target_s: float = 0.0
    tpot_target_s: float = 0.0
    weight: float = 1.0


async def deploy(directory: MeshDirectory, name: str, wish: Wish, console: Console) -> None:
    """Returns once the model takes requests; raises MeshError."""
    if not wish.weight > 0:  # the API takes 0 for a weight that is not told
        raise MeshError("--weight is over 0")
    address = await controller_address(directory)
    models.import_if_missing(directory, name, console)
    await _check_computed(directory, name, address)
    ref = common_pb2.ModelRef(model_id=name, digest=models.newest(directory, name))
    aim = pb.Aim(
        objective=wish.objective,
        ttft_target_s=wish.ttft_target_s,
        tpot_target_s=wish.tpot_target_s,
        weight=wish.weight,
    )
    request = pb.DeployRequest(model=ref, aim=aim)
    answer = await _asked(directory, lambda stub: stub.Deploy(request, timeout=CALL_S))
    deadline_s = time.monotonic() + READY_S
    with console.status(f"plan {answer.plan_number}: {name} is loading") as spinner:
        while (left := await _lacking(directory, name)) is not None:
            if time.monotonic() > deadline_s:
                raise MeshError(
                    f"{name} does not serve after {READY_S:g} s, and goes on trying: {left} "
                    f"(see shunt status; `shunt undeploy {name}` ends that)"
                )
            spinner.update(f"plan {answer.plan_number}: {left}")
            await asyncio.sleep(LOOK_S)
    console.print(f"{name} is deployed (plan {answer.plan_number})", highlight=False)


async def undeploy(directory: MeshDirectory, name: str) -> int:
    """Number of the plan without it; raises MeshError."""
    request = pb.UndeployRequest(model_id=name)
    answer = await _asked(directory, lambda stub: stub.Undeploy(request, timeout=CALL_S))
    return int(answer.plan_number)


async def _check_computed(directory: MeshDirectory, name: str, address: str) -> None:
    """Before nodes are taken from others for it; raises MeshError."""
    status = await controller_status(address)
    known = {node.backend for node in status.nodes if node.backend} if status is not None else set()
    if known:
        models.check_backend(directory, name, *sorted(known))


async def _asked(directory: MeshDirectory, call: Callable[[Any], Awaitable[T]]) -> T:
    """Raises MeshError with what the controller says."""
    async with controller_of(directory) as stub:
        try:
            return await call(stub)
        except grpc.aio.AioRpcError as error:
            raise MeshError(error.details() or error.code().name.lower()) from None


async def _lacking(directory: MeshDirectory, name: str) -> str | None:
    """What the model waits for, None when it takes requests; raises MeshError where it never
    will."""
    try:
        status = await controller_status(await controller_address(directory))
    except ControllerAwayError:
        status = None
    if status is None:
        return "the controller is away"
    found = next((d for d in status.deployments if d.model.model_id == name), None)
    if found is None:
        raise MeshError(f"{name} was undeployed meanwhile")
    if found.unusable:
        raise MeshError(f"{name} cannot be served: {found.unusable}")
    if found.ready_pipelines:
        return None
    own = {p for d in status.plan.deployments if d.model.model_id == name for p in d.pipeline_ids}
    faults = [fault for fault in status.faults if fault.pipeline_id in own]
    if faults:
        return fault_line(fault_json(faults[0]))
    return f"{name} waits for {', '.join(sorted(own)) or 'a plan'}"
