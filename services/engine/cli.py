"""`shunt engine`: one stage worker in the foreground, and the token that it needs."""

from __future__ import annotations

import os
from typing import Annotated

import typer

app = typer.Typer(help="One stage of a pipeline.", no_args_is_help=True)


@app.command()
def run(
    node_id: Annotated[str, typer.Option(help="Name of the node.")],
    controller: Annotated[str, typer.Option(help="host:port of the controller.")] = "",
    store: Annotated[str, typer.Option(help="URI of the tensor store.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.")] = 0,
) -> None:
    """Runs an engine process until a signal; SHUNT_ENGINE_* sets everything else."""
    given = {
        "NODE_ID": node_id,
        "CONTROLLER": controller,
        "STORE": store,
        "HOST": host,
        "GRPC_PORT": str(grpc_port),
    }
    os.environ.update({f"SHUNT_ENGINE_{name}": value for name, value in given.items() if value})
    from services.engine.__main__ import main

    main()


@app.command()
def token(node_id: Annotated[str, typer.Option(help="Name of the node.")]) -> None:
    """Prints the token of one node, made from the mesh's: what its machine may know."""
    from services.common import mesh_token
    from services.common.errors import ShuntError
    from services.common.settings import refuse

    try:
        own = mesh_token.own()
        if not own:
            refuse(mesh_token.VARIABLE, f"the mesh's token, or {mesh_token.FILE_VARIABLE}")
        print(mesh_token.of_node(own, node_id))
    except ShuntError as error:
        refuse("--node-id" if error.field == "node_id" else error.field, error.message)
