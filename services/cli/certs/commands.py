"""`shunt certs`: a mesh's authority, and short-lived certificates of one role each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from services.cli.certs.authority import LIFE, Wish, hosts_of, identity_from
from services.cli.certs.directory import AuthorityDirectory, create_authority, holders, write
from services.cli.certs.renewing import PAUSE_S, FromAuthority, FromDirectory, Source, renew
from services.cli.mesh_directory import MeshError
from services.cli.told import complain, told
from services.common.errors import ShuntError
from services.common.roles import Role
from services.common.settings import refuse

app = typer.Typer(no_args_is_help=True)
AUTHORITY_DAYS = 365
_ARGUMENTS = ("directory", "role")
_OPTIONS = {"life": "--hours"}
"""Those that are called otherwise than what is wrong with them."""

HoursOption = Annotated[float, typer.Option(help="How long a certificate lives.")]
OnceOption = Annotated[bool, typer.Option("--once", help="Look once, and end.")]
AuthorityOption = Annotated[Path, typer.Option(help="The authority's directory.")]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where the authority is to be.")],
    mesh: Annotated[str, typer.Option(help="The mesh's name.")] = "shunt",
    days: Annotated[int, typer.Option(help="How long the authority lives.")] = AUTHORITY_DAYS,
) -> None:
    """Makes an authority: who has its key says who is one of the mesh."""
    with _refused("DIRECTORY"):
        create_authority(directory, mesh, days, _now())
    print(f"{directory}: authority.pem, and authority.key, which goes to no other machine")


@app.command()
def issue(
    authority: AuthorityOption,
    roles: Annotated[
        list[str] | None, typer.Argument(metavar="[ROLE]...", help=f"{', '.join(Role)}; or all.")
    ] = None,
    node: Annotated[str, typer.Option(help="The node that an engine's is for.")] = "",
    host: Annotated[
        list[str] | None,
        typer.Option(help="IP address or DNS name it is dialled by, beside loopback; again: more."),
    ] = None,
    hours: HoursOption = LIFE / timedelta(hours=1),
    out: Annotated[
        Path | None, typer.Option(help="Directory of the one that is issued; else AUTHORITY/ROLE.")
    ] = None,
) -> None:
    """Issues certificates: certificate.pem, key.pem and authority.pem in a directory each."""
    with _refused():
        found, wanted = AuthorityDirectory(authority), roles or list(Role)
        if out is not None and len(wanted) > 1:
            refuse("--out", "is for one certificate")
        if node and wanted != [Role.ENGINE]:
            refuse("--node", "is for an engine's certificate alone")
        life = _life(hours)
        identities = [identity_from(role, node) for role in wanted]
        for identity in identities:
            home = out or found.home_of(identity)
            write(found.issue(Wish(identity, hosts_of(host or ()), life), _now()), home)
            print(home)


@app.command(name="renew")
def renew_all(
    directory: Annotated[Path, typer.Argument(help="Of certificates, or of such directories.")],
    authority: Annotated[Path | None, typer.Option(help="Sign anew with this authority.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take newer ones from this directory.")
    ] = None,
    once: OnceOption = False,
) -> None:
    """Renews certificates after two thirds of their lives, for as long as it runs. Services that
    use them go on with the new ones by themselves."""
    if authority is not None and source is not None:
        refuse("--from", "is given in place of --authority")
    kept: Source = FromAuthority(authority or directory)
    if source is not None:
        kept = FromDirectory(source)
    elif not holders(directory):
        refuse("DIRECTORY", f"{directory} has no certificates; `shunt certs issue` makes some")
    _go_on(
        lambda: renew(kept, [directory] if source else holders(directory), _now()),
        "renewed",
        once,
    )


@app.command()
def instances(
    authority: AuthorityOption,
    mesh: Annotated[str, typer.Option(help="The mesh's name, as its instances are tagged.")],
    region: Annotated[str, typer.Option(help="Of AWS; else as boto3 finds it.")] = "",
    hours: HoursOption = LIFE / timedelta(hours=1),
    once: OnceOption = False,
) -> None:
    """Gives each node on EC2 a certificate that names it, for as long as it runs: through
    parameters that its instance alone may read. Runs where the authority is."""
    from services.cli.ec2.account import Account
    from services.cli.ec2.node_certificates import NodeCertificates

    with _refused():
        AuthorityDirectory(authority)
        of_nodes = NodeCertificates(
            told(lambda: Account.open(region)), mesh, authority, _life(hours)
        )
    _go_on(lambda: of_nodes.look(_now()), "issued", once)


def _go_on(look: Callable[[], tuple[int, list[str]]], done: str, once: bool) -> None:
    """Looks again and again. A fault is told when it is new."""
    before: list[str] = []
    while True:
        try:
            count, faults = look()
        except (MeshError, ShuntError, OSError) as error:
            count, faults = 0, [str(error)]
        if count:
            print(f"{done} {count}", flush=True)
        for fault in faults:
            if fault not in before:
                complain(fault)
        before = faults
        if once:
            raise typer.Exit(1 if faults else 0)
        time.sleep(PAUSE_S)


def _life(hours: float) -> timedelta:
    return timedelta(hours=hours if 0 < hours < 1e6 else 0.0)


@contextmanager
def _refused(place: str = "--authority") -> Iterator[None]:
    """What cannot be done is said in a line, naming the option whose fault it is; `place` is the
    one that names the authority's directory."""
    try:
        yield
    except ShuntError as error:
        refuse(_named(error.field), error.message)
    except OSError as error:
        refuse(place, f"{error.filename}: {error.strerror}")


def _named(field: str) -> str:
    """As the command has it."""
    if field in _ARGUMENTS:
        return field.upper()
    return _OPTIONS.get(field, f"--{field or 'authority'}")


def _now() -> datetime:
    return datetime.now(UTC)
