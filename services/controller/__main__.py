"""`python -m services.controller`: reads the settings, serves until a signal."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO

import uvloop

from services.common import logs, settings, telemetry
from services.common.errors import ShuntError
from services.common.private import keep_files_private, make_private
from services.common.server import until_signal
from services.controller.assembly import AssembledController
from services.controller.core.cluster.goals import Goals
from services.controller.core.cluster.market import Offer
from services.controller.core.model_facts import ModelFacts
from services.controller.deployments import DEPLOYMENTS
from services.controller.journal.journal import Recovered
from services.controller.journal.sqlite import SqliteJournal
from services.controller.model_store import describe
from services.controller.providers.local import LocalProvider
from services.controller.providers.market_play import MarketPlay
from services.controller.providers.provider import ExternalProvider
from services.controller.settings import ControllerSettings

PROGRESS = "market.json"
FACTS = "model"
"""The note of controllers that knew one model."""


def make_local(
    chosen: ControllerSettings, offers: Sequence[Offer], address: Callable[[], str]
) -> LocalProvider:
    """Nodes on this machine; `address` tells engines where the controller is."""

    def environment(offer: Offer) -> dict[str, str]:
        shape = offer.shape
        named = {"instance_type": offer.instance_type, "pool": offer.pool, "spot": offer.spot}
        return {
            "SHUNT_ENGINE_DECLARED": json.dumps({} if chosen.market is None else named),
            "SHUNT_ENGINE_CORE_SHARE": str(chosen.core_share(shape.relative_speed)),
            "SHUNT_ENGINE_CONTROLLER": address(),
            "SHUNT_ENGINE_STORE": chosen.store or f"grpc://{chosen.tensorstore_address}",
            "SHUNT_ENGINE_MEMORY_BYTES": str(shape.memory_bytes),
            "SHUNT_ENGINE_RELATIVE_SPEED": str(shape.relative_speed),
            "SHUNT_ENGINE_DEVICE_TYPE": shape.device_type,
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    return LocalProvider(
        offers=offers, environment=environment, log_dir=chosen.data_dir / "engines"
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
    gc.freeze()  # what was imported stays: no collection looks at it and holds the loop for it
    journal = SqliteJournal(
        chosen.data_dir / "journal.db",
        commit_interval_s=chosen.commit_interval_s,
        pending_limit=chosen.journal_pending_limit,
        events_kept=chosen.events_kept,
        sync_always=chosen.sync_always,
        reserve_bytes=chosen.journal_reserve_bytes,
    )
    try:
        recovered = await journal.recover()
        facts = await first_facts(chosen, recovered)

        def address() -> str:
            return chosen.advertise_address or f"{chosen.host}:{controller.port}"

        play = local = None
        if chosen.market is not None:
            play = MarketPlay(chosen.market, chosen.data_dir / PROGRESS, chosen.market_run)
        if chosen.provider == "local":
            local = make_local(chosen, play.offers() if play else chosen.offers, address)
        controller = AssembledController(
            chosen,
            facts,
            journal=journal,
            recovered=recovered,
            provider=local or ExternalProvider(),
        )
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(controller.serving())
            if play is not None and local is not None:
                playing = play.playing(local, controller.until_serving)
                await stack.enter_async_context(playing)
            print(f"controller: grpc on {chosen.host}:{port}", flush=True)
            await until_signal()
    finally:
        await journal.close()
        telemetry.shutdown()


def lock(data_dir: Path) -> IO[str]:
    """Keeps a second controller away from the directory; exits 1 when there is one."""
    make_private(data_dir)
    file = (data_dir / "controller.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(f"another controller uses {data_dir}", file=sys.stderr)
        sys.exit(1)
    file.write(str(os.getpid()))
    file.flush()
    return file


def main() -> None:
    chosen = settings.read(ControllerSettings)
    logs.configure("controller", chosen.log_level)
    telemetry.configure(
        "controller", "controller-0", metrics_host=chosen.host, metrics_port=chosen.metrics_port
    )
    keep_files_private()
    with lock(chosen.data_dir):
        try:
            uvloop.run(serve(chosen))
        except ShuntError as error:
            print(f"controller: {error.message}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
