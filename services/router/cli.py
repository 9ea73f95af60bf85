"""`shunt router`: look at one router."""

from __future__ import annotations

import asyncio
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.table import Table
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import api_keys, channels
from services.common.roles import Role
from services.common.settings import TlsSettings, read
from services.common.statuses import from_rpc_error

TIMEOUT_S = 5.0
app = typer.Typer(help="One router.", no_args_is_help=True)
Address = Annotated[str, typer.Option("--grpc", help="The router's gRPC address.")]


@app.callback()
def router() -> None:
    """One router."""


@app.command()
def models(address: Address = "127.0.0.1:50051") -> None:
    """Lists the models that this router can be asked for."""
    try:
        found = asyncio.run(_models(address))
    except grpc.aio.AioRpcError as error:
        told = f"shunt: {address}: {from_rpc_error(error).message}"
        refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
        typer.echo(f"{told}; {api_keys.ADVICE}" if refused else told, err=True)
        raise typer.Exit(1) from None
    table = Table("model", "digest", "positions")
    for model in found:
        table.add_row(model.model_id, model.digest[:12], str(model.max_positions))
    Console().print(table)


async def _models(address: str) -> list[router_pb2.Model]:
    async with channels.open_channel(address, Role.ROUTER, tls=read(TlsSettings)) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        request, shown = router_pb2.ListModelsRequest(), api_keys.metadata()
        response = await stub.ListModels(request, timeout=TIMEOUT_S, metadata=shown)
    return list(response.models)
