"""`shunt launcher`: the launcher in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

import typer

app = typer.Typer(help="Starts and ends engines as containers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own."""


@app.command()
def run(
    project: Annotated[str, typer.Option(help="The compose project whose engines these are.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.")] = 0,
) -> None:
    """Runs the launcher until a signal; SHUNT_LAUNCHER_* sets everything else."""
    given = {"PROJECT": project, "HOST": host, "GRPC_PORT": str(grpc_port)}
    os.environ.update({f"SHUNT_LAUNCHER_{name}": value for name, value in given.items() if value})
    from services.launcher.__main__ import main

    main()
