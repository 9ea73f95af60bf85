"""`shunt keys`: who may ask, and how much."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from services.cli.key_files import (
    FILE_VARIABLE,
    add_key,
    first_key,
    read,
    revoke_key,
)
from services.cli.tables import text_table
from services.cli.told import complain
from services.common.api_keys import KeyRow, TenantRow
from services.common.errors import NotFound, ShuntError
from services.common.settings import refuse

app = typer.Typer(no_args_is_help=True)
DEFAULT_FILE = Path(".shunt") / "keys.json"
_OPTIONS = {
    "tenant": "--tenant",
    "class": "--class",
    "weight": "--weight",
    "requests_per_minute": "--rpm",
    "tokens_per_minute": "--tpm",
    "streams": "--streams",
    "models": "--models",
}
"""By what the file calls them."""

FileOption = Annotated[
    Path, typer.Option(envvar=FILE_VARIABLE, help="The file that routers read: `up --keys`.")
]
TenantOption = Annotated[str, typer.Option(help="Whose key it is.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]


@app.command()
def create(
    tenant: TenantOption,
    priority: Annotated[
        str | None, typer.Option("--class", help="protected, standard or tolerant.")
    ] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute; 0: any.")] = None,
    tpm: Annotated[
        int | None, typer.Option(help="Tokens a minute, of prompts and answers; 0: any.")
    ] = None,
    streams: Annotated[int | None, typer.Option(help="Answers at a time; 0: any.")] = None,
    models: Annotated[
        str | None, typer.Option(help="The models it may use, between commas; empty: all.")
    ] = None,
    weight: Annotated[
        int | None, typer.Option(help="Its share against other tenants', where they compete.")
    ] = None,
    file: FileOption = DEFAULT_FILE,
    as_json: JsonOption = False,
) -> None:
    """Makes a key, shown this once. What is said of the tenant counts for all its keys; what is
    not said stays as it is."""
    said: dict[str, Any] = {
        "class": priority,
        "weight": weight,
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "streams": streams,
    }
    said = {name: value for name, value in said.items() if value is not None}
    if models is not None:
        said["models"] = [name for name in models.split(",") if name] or None
    with _refused():
        key_id, key = add_key(file, tenant, said)
    if as_json:
        print(json.dumps({"id": key_id, "key": key, "tenant": tenant}))
    else:
        print(f"{file}: key {key_id} of tenant {tenant}: {key}")


@app.command()
def first(
    tenant: TenantOption,
    key_file: Annotated[Path, typer.Option(help="Where the key goes, for its owner alone.")],
    file: FileOption = DEFAULT_FILE,
) -> None:
    """Makes the file and its first key, shown nowhere; a file that is there stays as it is."""
    with _refused():
        made = first_key(file, tenant, key_file)
    print(f"{file}: the first key is in {key_file}" if made else f"{file} is there")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` has it.")],
    file: FileOption = DEFAULT_FILE,
) -> None:
    """Takes a key back; routers know it within a second. The tenant's limits stay for its other
    keys, and for its next."""
    with _refused():
        revoke_key(file, key_id)
    print(f"{file}: key {key_id} is revoked")


@app.command(name="list")
def list_keys(file: FileOption = DEFAULT_FILE, as_json: JsonOption = False) -> None:
    """Shows which keys there are, and what their tenants may do; never a key."""
    with _refused():
        held = read(file)
    rows = [_shown(key, held.tenants[key.tenant]) for key in held.keys]
    if as_json:
        print(json.dumps(rows))
        return
    head = ("id", "tenant", "class", "weight", "rpm", "tpm", "streams", "models", "made")
    table = text_table(*head, whole="id")
    for row in rows:
        limits = [str(row[name] or "any") for name in ("rpm", "tpm", "streams")]
        models = ",".join(row["models"]) if row["models"] else "all"
        made = time.strftime("%Y-%m-%d", time.gmtime(row["created_unix_s"]))
        rank = (row["class"], str(row["weight"]))
        table.add_row(row["id"], row["tenant"], *rank, *limits, models, made)
    Console().print(table)


def _shown(key: KeyRow, tenant: TenantRow) -> dict[str, Any]:
    """Limits that do not bind are null, and so are the models of who may use all."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "class": tenant.priority.value,
        "weight": tenant.weight,
        "rpm": tenant.requests_per_minute or None,
        "tpm": tenant.tokens_per_minute or None,
        "streams": tenant.streams or None,
        "models": None if tenant.models is None else list(tenant.models),
        "created_unix_s": key.created_unix_s,
    }


@contextmanager
def _refused() -> Iterator[None]:
    """What cannot be done is said in a line, naming the option whose fault it is."""
    try:
        yield
    except NotFound as error:
        complain(error.message)
        raise typer.Exit(1) from None
    except ShuntError as error:
        refuse(_OPTIONS.get(error.field, "--file"), error.message)
    except OSError as error:
        refuse("--file", f"{error.filename}: {error.strerror}")
