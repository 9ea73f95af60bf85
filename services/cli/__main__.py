"""`shunt`: the command line of the mesh and of its services."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.layout import MODEL, NODE_SPEEDS, MeshOptions
from services.cli.mesh_directory import MeshDirectory
from services.cli.mesh_option import DEFAULT_DATA_DIR, DataDir, mesh_in
from services.cli.plan import OF_PLAN
from services.cli.told import complain, told
from services.common.addresses import MAX_CONTROLLERS
from services.common.nodes import Backend

MOUNTED = {
    "model": ("services.tensorstore.cli", "Import and look after stored models."),
    "plan": ("services.placement.cli", "Plan placements and estimate them."),
    "simulate": ("services.cli.simulate", "What a fleet would come to, on a virtual clock."),
    "engine": ("services.engine.cli", "One stage of a pipeline."),
    "controller": ("services.controller.cli", "The controller in the foreground."),
    "launcher": ("services.launcher.cli", "Starts and ends engines as containers."),
    "router": ("services.router.cli", "Ask one router for its models."),
    "keys": ("services.cli.keys", "API keys, and what their tenants may do."),
    "batch": ("services.cli.batch", "Requests by the file, answered within a day."),
    "certs": ("services.cli.certs.commands", "An authority, and certificates for mutual TLS."),
    "ec2": ("services.cli.ec2.app", "A mesh on EC2, from credentials to answers."),
}
"""Commands of their own; a module is imported only when its name is called."""

console = Console()
app = typer.Typer(
    help="Serves large language models on spot instances.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is ready.")] = False,
    routers: Annotated[int, typer.Option(min=1, max=64, help="How many routers.")] = 1,
    http_port: Annotated[int, typer.Option(help="HTTP port of the first router.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="gRPC port of the first router.")] = 50051,
    model: Annotated[str, typer.Option(help="The model to serve.")] = MODEL,
    node_speeds: Annotated[
        str, typer.Option(help="Speeds of the local nodes: 3:2,3:2 is four nodes, two pipelines.")
    ] = NODE_SPEEDS,
    backend: Annotated[
        str,
        typer.Option(
            help="What computes: native, or vllm, which `make vllm` installs; native,vllm: one of "
            "each for the pipelines of --node-speeds, in turn."
        ),
    ] = "native",
    market: Annotated[
        Path | None, typer.Option(help="YAML: offers of nodes, and what happens to them when.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="throughput, throughput-per-cost or goodput-per-cost."),
    ] = None,
    budget_per_hour: Annotated[
        float | None, typer.Option(help="Most dollars an hour of all nodes; 0 does not bind.")
    ] = None,
    nodes_min: Annotated[
        int | None, typer.Option(help="Least nodes; 0: none while nobody asks.")
    ] = None,
    nodes_max: Annotated[
        int | None, typer.Option(help="Most nodes; 0: as many as at first.")
    ] = None,
    spares: Annotated[
        int | None, typer.Option(help="Nodes that wait, loaded, for one that is lost.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="full, migration, concurrent-init, none, spotserve or thunderserve: what is done "
            "when nodes come and go."
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="Stages of every pipeline: 0-1:tp1,2-5:tp2 is layers 0 and 1 on one rank, then 2 "
            "to 5 on two; the planner's choice where nothing is said."
        ),
    ] = None,
    phases: Annotated[
        str | None,
        typer.Option(
            help="prefill, decode or both for each pipeline in the order of their ids, between "
            "commas: prefill,decode has answers begin at one and go on at the other."
        ),
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            help="sqlite:PATH, or postgresql://USER@HOST/DATABASE, whose password belongs in "
            "PGPASSFILE; in the data directory where nothing is said."
        ),
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(help="An authority that `shunt certs init` made: mutual TLS on every port."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys that `shunt keys` made: nobody asks without one."),
    ] = None,
    standbys: Annotated[
        int,
        typer.Option(
            min=0,
            max=MAX_CONTROLLERS - 1,
            help="Controllers beside the first one, which follow it; for --journal postgresql://…",
        ),
    ] = 0,
) -> None:
    """Starts a mesh of local processes; without --detach, Ctrl-C stops it."""
    from services.cli.up import run_detached, run_in_foreground

    options = MeshOptions(
        routers,
        http_port,
        grpc_port,
        model,
        node_speeds,
        backend,
        market,
        objective,
        budget_per_hour,
        nodes_min,
        nodes_max,
        spares,
        strategy,
        stages,
        phases,
        journal,
        certificates,
        keys,
        standbys,
    )
    start = run_detached if detach else run_in_foreground
    told(lambda: start(MeshDirectory(data_dir), options, console))


@app.command()
def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stops the mesh, engines too."""
    from services.cli.down import take_down

    directory = MeshDirectory(data_dir)
    ended = told(lambda: take_down(directory))
    console.print("stopped" if ended else f"no mesh runs in {directory.path}", soft_wrap=True)


@app.command()
def status(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Shows services, nodes, pipelines and generations."""
    from services.cli.mesh_status import mesh_status
    from services.cli.status_table import status_table

    state = told(mesh_in(data_dir).running)
    found = asyncio.run(mesh_status(state))
    if as_json:
        print(json.dumps(found))
    else:
        console.print(status_table(found))


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="Ask only this.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
) -> None:
    """Talks with the model."""
    from services.cli.chat import answer, converse

    state = told(mesh_in(data_dir).running)
    routers = [s.grpc for s in state.services if s.http is not None and s.grpc is not None]
    if question:
        turns = [("user", question)]
        told(lambda: asyncio.run(answer(console, routers, state.model, turns, max_tokens)))
    else:
        told(lambda: converse(console, routers, state.model, max_tokens))


@app.command()
def interrupt(
    node: Annotated[str, typer.Argument(help="The node, as `shunt status` names it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    notice: Annotated[float, typer.Option(min=0, help="Seconds until it is taken away.")] = 120.0,
    kill: Annotated[bool, typer.Option("--kill", help="End its process now.")] = False,
) -> None:
    """Takes a node away: with notice, as a cloud does, or at once."""
    from services.cli.interrupt import interrupt as report

    directory = mesh_in(data_dir)
    number = told(lambda: asyncio.run(report(directory, node, notice, kill)))
    what = "is killed" if kill else f"will be taken away in {notice:g} s"
    console.print(f"{node} {what} (event {number})", highlight=False)


@app.command()
def events(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: an object a line.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as events happen.")] = False,
    since: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The first number wanted.")] = 0,
    kind: Annotated[list[str], typer.Option(help="Only this kind; may be given again.")] = [],  # noqa: B006
) -> None:
    """Shows what happened to nodes, pipelines and plans."""
    from services.cli.event_stream import print_events
    from services.cli.events import read_events

    found = read_events(mesh_in(data_dir), since, follow, complain)
    told(lambda: print_events(found, kind, as_json))


@app.command()
def deploy(
    model: Annotated[str, typer.Argument(help="The model, as the store names it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    objective: Annotated[
        str, typer.Option(help="throughput, throughput-per-cost or goodput-per-cost.")
    ] = "throughput",
    ttft_target: Annotated[
        float, typer.Option(min=0, help="Longest mean time to first token in s; 0: any.")
    ] = 0.0,
    tpot_target: Annotated[
        float, typer.Option(min=0, help="Longest mean time per output token in s; 0: any.")
    ] = 0.0,
    weight: Annotated[float, typer.Option(help="Its share of the nodes against others.")] = 1.0,
) -> None:
    """Serves one more model on the nodes of the running mesh."""
    from services.cli.deploy import Wish
    from services.cli.deploy import deploy as bring

    wish = Wish(objective, ttft_target, tpot_target, weight)
    told(lambda: asyncio.run(bring(mesh_in(data_dir), model, wish, console)))


@app.command()
def undeploy(
    model: Annotated[str, typer.Argument(help="The model, as `shunt status` names it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Serves a model no longer; what it has begun may end, and its nodes go to the others."""
    from services.cli.deploy import undeploy as take_out

    told(lambda: asyncio.run(take_out(mesh_in(data_dir), model)))
    console.print(f"{model} is undeployed (see shunt status)", highlight=False)


@app.command()
def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where the demo's own mesh lives.")
    ] = DEFAULT_DATA_DIR / "demo",
    backend: Annotated[Backend, typer.Option(help="What computes: native or vllm.")] = "native",
) -> None:
    """Kills a node in mid-answer, then takes one away with notice; compares the texts."""
    from services.cli.demo import run_demo

    if not told(lambda: run_demo(MeshDirectory(data_dir), console, backend)):
        raise typer.Exit(1)


@app.command()
def node(
    controller: Annotated[
        str,
        typer.Option(
            help="host:port of the controller, or of several, between commas.",
            envvar="SHUNT_NODE_CONTROLLER",
        ),
    ],
    store: Annotated[
        str,
        typer.Option(
            help="The store of models: a path, file:// or s3://bucket/prefix.",
            envvar="SHUNT_NODE_STORE",
        ),
    ],
    metadata: Annotated[str, typer.Option(help="URL of the cloud's metadata service.")] = "",
    certificates: Annotated[
        str, typer.Option(help="Directory of certificate.pem, key.pem and authority.pem.")
    ] = "",
    join_token: Annotated[str, typer.Option(help="File with the token of mesh or node.")] = "",
    node_id: Annotated[str, typer.Option("--id", help="The node's name; else it is found.")] = "",
) -> None:
    """Runs this machine as a node of a mesh: its tensor store and an engine, until it is told to
    stop or will be taken away. SHUNT_NODE_* sets everything else."""
    given = {
        "CONTROLLER": controller,
        "STORE": store,
        "METADATA": metadata,
        "CERTIFICATES": certificates,
        "JOIN_TOKEN": join_token,
        "ID": node_id,
    }
    os.environ.update({f"SHUNT_NODE_{name}": value for name, value in given.items() if value})
    from services.cli.node.__main__ import main as run_node

    run_node()


def _leave(number: int, frame: object) -> None:
    """What was started for this command is ended on the way out, as by Ctrl-C."""
    sys.exit(128 + number)


def commands_of(name: str) -> typer.Typer:
    """Those below one name; for one call a process."""
    commands: typer.Typer = importlib.import_module(MOUNTED[name][0]).app
    for command, of_mesh in OF_PLAN.items() if name == "plan" else ():
        commands.command(command)(of_mesh)
    return commands


def mount(arguments: Sequence[str]) -> None:
    """Adds the services' commands; only the one that is called is imported."""
    called = arguments[0] if arguments else ""
    for name, (_, help_text) in MOUNTED.items():
        commands = commands_of(name) if name == called else typer.Typer()
        app.add_typer(commands, name=name, help=help_text)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asks for that
            signal.signal(number, _leave)
    try:
        mount(sys.argv[1:])
        app()
    except KeyboardInterrupt:  # before typer hears it: while a command is imported and put together
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
