"""`shunt controller`: the controller in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Nodes, pipelines, interruptions, the journal.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own."""


@app.command()
def run(
    data_dir: Annotated[Path, typer.Option(help="Journal and engine logs.")],
    tensorstore: Annotated[str, typer.Option(help="host:port of the tensor store.")] = "",
    placement: Annotated[str, typer.Option(help="host:port of placement.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.")] = 0,
) -> None:
    """Runs the controller until a signal; SHUNT_CONTROLLER_* sets everything else."""
    given = {
        "DATA_DIR": str(data_dir),
        "TENSORSTORE_ADDRESS": tensorstore,
        "PLACEMENT_ADDRESS": placement,
        "HOST": host,
        "GRPC_PORT": str(grpc_port),
    }
    os.environ.update({f"SHUNT_CONTROLLER_{name}": value for name, value in given.items() if value})
    from services.controller.__main__ import main

    main()
