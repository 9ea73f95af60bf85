"""`python -m services.controller`: reads the settings, serves until a signal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from shuntserve.launcher.v1 import launcher_pb2_grpc

from services.common import channels, event_loop, garbage, logs, settings, telemetry
from services.common.errors import ShuntError
from services.common.private import keep_files_private, make_private
from services.common.roles import Role
from services.common.server import Signals, until_signal
from services.controller import metrics, target_page
from services.controller.assembly import AssembledController
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import Offer
from services.controller.core.model_facts import ModelFacts
from services.controller.deployments import DEPLOYMENTS
from services.controller.journal.journal import Journal, Recovered
from services.controller.journal.place import SqlitePlace
from services.controller.leading import (
    Stopped,
    lead,
    lock_files,
    open_postgres,
    open_sqlite,
    own_address,
)
from services.controller.model_store import describe
from services.controller.providers.docker import DockerProvider
from services.controller.providers.local import ENGINE, LocalProvider, engine_here
from services.controller.providers.market_play import MarketPlay
from services.controller.providers.provider import ExternalProvider
from services.controller.settings import ControllerSettings
from services.controller.standby import Standby

if TYPE_CHECKING:
    from services.controller.journal.postgres.journal import PostgresJournal
    from services.controller.providers.ec2.provider import Ec2Provider

_log = logging.getLogger(__name__)

SUPERSEDED = 3
"""Exit status of one whose standby leads: started again, it is a standby itself."""
FACTS = "model"
"""The note of controllers that knew one model."""


def shape_environment(offer: Offer) -> dict[str, str]:
    """What an engine is told of its node, whoever starts it."""
    shape = offer.shape
    return {
        "SHUNT_ENGINE_MEMORY_BYTES": str(shape.memory_bytes),
        "SHUNT_ENGINE_RELATIVE_SPEED": str(shape.relative_speed),
        "SHUNT_ENGINE_DEVICE_TYPE": shape.device_type,
        "SHUNT_ENGINE_RANKS": str(shape.device_count),
        "SHUNT_ENGINE_BACKEND": shape.backend,
    }


def make_local(
    chosen: ControllerSettings, offers: Sequence[Offer], address: Callable[[], str]
) -> LocalProvider:
    """Nodes on this machine; `address` tells engines where the controller is."""

    def environment(offer: Offer) -> dict[str, str]:
        share = chosen.supply.core_share(offer.shape.relative_speed)
        named = {"instance_type": offer.instance_type, "pool": offer.pool, "spot": offer.spot}
        return {
            **shape_environment(offer),
            "SHUNT_ENGINE_CONTROLLER": address(),
            "SHUNT_ENGINE_STORE": chosen.store or f"grpc://{chosen.tensorstore_address}",
            "SHUNT_ENGINE_DECLARED": json.dumps({} if chosen.market is None else named),
            "SHUNT_ENGINE_CORE_SHARE": str(share),
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def command(offer: Offer) -> Sequence[str]:
        in_vllms = offer.shape.backend == "vllm"
        return (str(chosen.vllm_python), *ENGINE) if in_vllms else engine_here(offer)

    return LocalProvider(
        offers=offers,
        environment=environment,
        log_dir=chosen.data_dir / "engines",
        command=command,
    )


def make_ec2(
    chosen: ControllerSettings,
    controller: Callable[[], AssembledController],
    address: Callable[[], str],
) -> Ec2Provider:
    """Instances; `controller` is the one that they are nodes of, once it is made."""
    # here, so that only who buys there needs boto3
    from services.controller.providers.ec2.making import make_provider

    def environment(offer: Offer) -> dict[str, str]:
        joins = {"SHUNT_NODE_CONTROLLER": address(), "SHUNT_NODE_STORE": chosen.store}
        return joins | shape_environment(offer)

    return make_provider(
        chosen.ec2,
        directory=chosen.data_dir,
        environment=environment,
        plan=lambda: controller().plan_number,
        known=lambda: controller().known_nodes(),
    )


@asynccontextmanager
async def in_containers(
    chosen: ControllerSettings, controller: Callable[[], AssembledController]
) -> AsyncIterator[DockerProvider]:
    """Containers by the launcher; what all of them are told stands in its compose file."""
    async with channels.open_channel(
        chosen.launcher_address, Role.LAUNCHER, tls=chosen.tls
    ) as channel:
        yield DockerProvider(
            launcher_pb2_grpc.LauncherServiceStub(channel),
            offers=chosen.supply.offers,
            environment=shape_environment,
            known=lambda: controller().known_nodes(),
        )


async def first_facts(chosen: ControllerSettings, recovered: Recovered) -> ModelFacts:
    """Of the model that the settings name; from the journal alone where that was undeployed, for it
    may be in no store any more."""
    noted, older = recovered.saved.get(DEPLOYMENTS), recovered.saved.get(FACTS)
    known = None if older is None else ModelFacts.from_json(older)
    if noted is not None:
        goals = Goals.from_json(noted)
        known = goals.first.facts
        same = known.model_id == chosen.model_id and chosen.model_digest in ("", known.digest)
        if same and goals.find(known.model_id) is None:
            return known
    return await describe(
        chosen.tensorstore_address,
        chosen.model_id,
        digest=chosen.model_digest,
        known=known,
        timeout_s=chosen.describe_timeout_s,
        tls=chosen.tls,
    )


async def serve(chosen: ControllerSettings) -> None:
    """Leads until a signal. A standby waits for its turn before; who is followed by one ends at
    once."""
    garbage.spare_what_stays()
    place = chosen.journal_place
    if isinstance(place, SqlitePlace):
        journal = open_sqlite(chosen, place)
        try:
            await _serve_with(chosen, journal, await journal.recover(), until_signal)
        finally:
            await journal.close()
            telemetry.shutdown()
        return
    signals, standby = Signals(), Standby(chosen)
    port = await standby.start()
    shared = open_postgres(chosen, place, lambda: own_address(chosen, port))
    try:
        recovered = await lead(chosen, shared, standby, signals)
        followed = asyncio.create_task(_end_when_superseded(shared))
        here = chosen.model_copy(update={"grpc_port": port})
        await _serve_with(here, shared, recovered, signals.next)
        followed.cancel()
    except Stopped:
        pass
    finally:
        await shared.close()
        telemetry.shutdown()


async def _end_when_superseded(journal: PostgresJournal) -> NoReturn:
    """The nodes are another controller's by now: nothing is tidied up."""
    error = await journal.superseded()
    _log.error("ends", extra={"why": error.message})
    print(f"controller: {error.message}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(SUPERSEDED)


async def _serve_with(
    chosen: ControllerSettings,
    journal: Journal,
    recovered: Recovered,
    told_to_stop: Callable[[], Awaitable[object]],
) -> None:
    facts = await first_facts(chosen, recovered)

    def address() -> str:
        return chosen.advertise_address or f"{chosen.host}:{controller.port}"

    play = local = ec2 = docker = None
    if chosen.market is not None:
        play = MarketPlay(chosen.market, chosen.market_run, journal, recovered.saved)
    async with AsyncExitStack() as stack:
        if chosen.provider == "local":
            local = make_local(chosen, play.offers() if play else chosen.supply.offers, address)
        elif chosen.provider == "ec2":
            ec2 = make_ec2(chosen, lambda: controller, address)
        elif chosen.provider == "docker":
            docker = await stack.enter_async_context(in_containers(chosen, lambda: controller))
        controller = AssembledController(
            chosen,
            facts,
            journal=journal,
            recovered=recovered,
            provider=local or ec2 or docker or ExternalProvider(),
        )
        if watching := ec2 or docker:
            await stack.enter_async_context(watching.running())
        port = await stack.enter_async_context(controller.serving())
        if play is not None and local is not None:
            playing = play.playing(local, controller.until_serving)
            await stack.enter_async_context(playing)
        print(f"controller: grpc on {chosen.host}:{port}", flush=True)
        await told_to_stop()


def lock(path: Path) -> IO[str]:
    """Keeps a second controller away from what is beside the file; exits 1 when there is one."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f"another controller uses {path.parent}", file=sys.stderr)
        sys.exit(1)
    file.write(str(os.getpid()))
    file.flush()
    return file


def main() -> None:
    chosen = settings.read(ControllerSettings)
    logs.configure("controller", chosen.log_level)
    telemetry.configure(
        "controller",
        "controller-0",
        metrics_host=chosen.host,
        metrics_port=chosen.metrics_port,
        pages={target_page.PATH: metrics.TARGETS.read},
    )
    keep_files_private()
    with ExitStack() as locks:
        try:
            make_private(chosen.data_dir)
            for path in lock_files(chosen):
                path.parent.mkdir(parents=True, exist_ok=True)
                locks.enter_context(lock(path))
        except OSError as error:
            beside = Path(error.filename or "").is_relative_to(chosen.data_dir)
            setting = "data_dir" if beside else "journal"
            settings.refuse(chosen.name_of(setting), f"{error.filename}: {error.strerror}")
        try:
            event_loop.run(serve(chosen))
        except ShuntError as error:
            setting = f"{chosen.name_of(error.field)}: " if error.field == "journal" else ""
            print(f"controller: {setting}{error.message}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    settings.take_no_arguments(ControllerSettings)
    main()
