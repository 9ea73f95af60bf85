"""`shunt up`: imports the model when it is missing, then supervises a mesh, here or detached."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.live import Live

from services.cli import model, ports, processes
from services.cli.backends import engine_python
from services.cli.certs import local
from services.cli.down import SUPERVISOR_GRACE_S
from services.cli.layout import MeshOptions, local_mesh
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState
from services.cli.mesh_status import mesh_status
from services.cli.status_table import status_table
from services.cli.supervisor import READY_TIMEOUT_S, Supervisor
from services.common.addresses import MAX_CONTROLLERS
from services.common.api_keys import VARIABLE, KeyFile
from services.common.backends import parse_backends
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.private import keep_files_private
from services.common.speeds import parse_speeds
from services.controller.journal.place import PostgresPlace, place_of
from services.controller.settings import ControllerSettings

START_TIMEOUT_S = READY_TIMEOUT_S + 30.0
REFRESH_S = 1.0


def prepare(directory: MeshDirectory, options: MeshOptions, console: Console) -> None:
    """Everything that can be refused at once; raises MeshError."""
    if options.routers < 1:
        raise MeshError("--routers must be at least 1")
    if abs(options.http_port - options.grpc_port) < options.routers:
        raise MeshError("--http-port and --grpc-port overlap: each router takes one port of both")
    keep_files_private()
    try:
        parse_speeds(options.node_speeds)
    except InvalidArgument as error:
        raise MeshError(f"--node-speeds: {error.message}") from None
    check_controller(options)
    if options.keys is not None:
        _check_keys(options.keys)
    check_standbys(options)
    engine_python(options.backends)
    if options.certificates is not None:
        _equip(options.certificates)
    with directory.locked():
        end_leftovers(directory)
        ports.check_free(options.http_port, options.routers, "--http-port")
        ports.check_free(options.grpc_port, options.routers, "--grpc-port")
        model.import_if_missing(directory, options.model, console)
        for backend in options.backends:
            model.check_backend(directory, options.model, backend)
        if options.stages:
            model.check_stages(directory, options.model, options.stages)


def _equip(certificates: Path) -> None:
    """What is started from here on shows its certificates; raises MeshError."""
    try:
        local.equip(certificates)
    except FailedPrecondition as error:
        raise MeshError(f"--certificates: {error.message}") from None
    except OSError as error:
        raise MeshError(f"--certificates: {error.filename}: {error.strerror}") from None
    os.environ.update(local.environment(certificates.absolute()))


def _check_keys(path: Path) -> None:
    """Raises MeshError for a file that routers could not use."""
    try:
        KeyFile.read(path.read_bytes())
    except InvalidArgument as error:
        raise MeshError(f"--keys: {path}: {error.message}") from None
    except OSError as error:
        raise MeshError(f"--keys: {path}: {error.strerror}; `shunt keys create` makes it") from None


_FLAGS = {"market_file": "market", "node_backend": "backend"}
"""Those that are called otherwise than the setting."""
_WORDS = re.compile(r"[a-z]+(?:_[a-z]+)+")


def check_controller(options: MeshOptions) -> None:
    """What the controller would say of its options, before anything is started; raises MeshError,
    naming the flag."""
    try:
        parse_backends(options.backend)
    except InvalidArgument as error:
        raise MeshError(f"--backend: {error.message}") from None
    given: dict[str, Any] = {
        "node_speeds": options.node_speeds,
        "node_backend": options.backend,
        **options.wishes,
    }
    if options.market is not None:
        given["market_file"] = options.market
    flags = {name: f"--{_FLAGS.get(name, name.replace('_', '-'))}" for name in given}
    try:
        ControllerSettings(**given)
    except ValidationError as error:
        for fault in error.errors():  # the controller itself says what is wrong with its others
            field = str(fault["loc"][0]) if fault["loc"] else ""
            if field in given:
                reason = fault["msg"].removeprefix("Value error, ")
                told = _WORDS.sub(lambda word: flags.get(word[0], word[0]), reason)
                raise MeshError(f"{flags[field]}: {told}") from None


def check_standbys(options: MeshOptions) -> None:
    """Whether what several controllers need is there; raises MeshError, naming the flag."""
    if not options.standbys:
        return
    if not 0 < options.standbys < MAX_CONTROLLERS:
        raise MeshError(f"--standbys is from 0 to {MAX_CONTROLLERS - 1}")
    place = place_of(options.journal or "", Path())
    if not isinstance(place, PostgresPlace):
        raise MeshError(
            "--standbys: a file is one controller's journal; several share --journal postgresql://…"
        )


def end_leftovers(directory: MeshDirectory) -> None:
    """Ends what a supervisor that was killed left behind; call with the lock held."""
    state = directory.read()
    if state is not None:
        processes.end(processes.own_processes(state.mesh_id), grace_s=2.0)
        directory.remove_state()


def run_in_foreground(directory: MeshDirectory, options: MeshOptions, console: Console) -> None:
    """Serves until SIGINT or SIGTERM, or until its terminal is closed."""
    prepare(directory, options, console)
    with directory.locked():
        asyncio.run(_supervise(directory, options, console))
        directory.remove_state()
    console.print("stopped")


async def _supervise(directory: MeshDirectory, options: MeshOptions, console: Console) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asks for that
            loop.add_signal_handler(number, stop.set)
    states: asyncio.Queue[MeshState] = asyncio.Queue()
    specs = local_mesh(directory, options, model.newest(directory, options.model))
    supervisor = Supervisor(directory, specs, options, states.put_nowait)
    run = asyncio.create_task(supervisor.run(stop))
    beside = [asyncio.create_task(_show(states, console, options))]
    if options.certificates is not None:
        beside.append(asyncio.create_task(local.keep_young(options.certificates)))
    try:
        await run
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _show(states: asyncio.Queue[MeshState], console: Console, options: MeshOptions) -> None:
    with console.status("starting") as spinner:
        while (state := await states.get()).phase == "starting":
            spinner.update(state.message)
    if state.phase != "ready":
        return
    console.print(where_it_listens(state, options), highlight=False, soft_wrap=True)
    console.print("Ctrl-C stops everything.")
    if not console.is_terminal:
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while state.phase == "ready":
            while not states.empty():
                state = states.get_nowait()
            live.update(status_table(await mesh_status(state)), refresh=True)
            await asyncio.sleep(REFRESH_S)


def run_detached(directory: MeshDirectory, options: MeshOptions, console: Console) -> None:
    """Starts a supervisor of its own session and returns when the mesh is ready. When it raises,
    Ctrl-C too, what it has started is ended, and nothing else."""
    prepare(directory, options, console)
    command = [
        *(sys.executable, "-m", "services.cli", "up", "--data-dir", str(directory.path)),
        *("--routers", str(options.routers), "--model", options.model),
        *("--node-speeds", options.node_speeds, "--backend", options.backend),
        *("--http-port", str(options.http_port), "--grpc-port", str(options.grpc_port)),
    ]
    if options.market is not None:
        command += ["--market", str(options.market)]
    if options.certificates is not None:
        command += ["--certificates", str(options.certificates)]
    if options.keys is not None:
        command += ["--keys", str(options.keys)]
    if options.standbys:
        command += ["--standbys", str(options.standbys)]
    for name, value in options.wishes.items():
        command += [f"--{name.replace('_', '-')}", value]
    directory.logs.mkdir(parents=True, exist_ok=True)
    with (directory.logs / "supervisor.log").open("wb") as log:
        supervisor = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        state = _await_ready(directory, supervisor, console)
    except BaseException:
        _end(supervisor)
        raise
    console.print(where_it_listens(state, options), highlight=False, soft_wrap=True)


def _await_ready(
    directory: MeshDirectory, supervisor: subprocess.Popen[bytes], console: Console
) -> MeshState:
    deadline = time.monotonic() + START_TIMEOUT_S
    with console.status("starting") as spinner:
        while True:
            state = directory.read()
            if state is not None and state.supervisor_pid == supervisor.pid:
                if state.phase == "ready":
                    return state
                spinner.update(state.message)
            if supervisor.poll() is not None:
                raise MeshError(_why(directory, supervisor.pid))
            if time.monotonic() > deadline:
                raise MeshError(f"the mesh is not ready after {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)


def _why(directory: MeshDirectory, supervisor_pid: int) -> str:
    """Why a supervisor has ended: the fault in its state, else the end of its log."""
    state = directory.read()
    if state is not None and (state.supervisor_pid, state.phase) == (supervisor_pid, "failed"):
        return state.message
    said = directory.log_tail("supervisor", 12)
    return said.removeprefix("shunt: ") or "the mesh did not start"


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """It ends its services; those of one that must be killed, the next start finds."""
    supervisor.terminate()
    try:
        supervisor.wait(SUPERVISOR_GRACE_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def where_it_listens(state: MeshState, options: MeshOptions) -> str:
    """What is to be known first, addresses, and a curl line that works."""
    routers = [service for service in state.services if service.http is not None]
    lines = [] if state.message == "ready" else [state.message]
    lines += [f"{r.name}: HTTP {r.http}, gRPC {r.grpc}" for r in routers]
    body = (
        f'{{"model":"{state.model}","temperature":0,"messages":'
        '[{"role":"user","content":"What is the capital of France?"}]}'
    )
    asks = options.keys is not None
    shown = f'-H "Authorization: Bearer ${VARIABLE}" ' if asks else ""
    lines.append(f"Try, with your key in {VARIABLE}:" if asks else "Try:")
    lines.append(
        f"  curl {routers[0].http}/v1/chat/completions {shown}"
        f"-H 'Content-Type: application/json' -d '{body}'"
    )
    return "\n".join(lines)
