"""Certificates of a local mesh: each role's, issued and renewed by who keeps the mesh running."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from services.cli.certs.authority import LIFE, Wish, hosts_of
from services.cli.certs.directory import AuthorityDirectory, write
from services.cli.certs.renewing import PAUSE_S, FromAuthority, keep, renew
from services.common.certificate_files import CERTIFICATE
from services.common.errors import FailedPrecondition
from services.common.roles import Identity, Role
from services.common.settings import TlsSettings

_SERVICES = (Role.ROUTER, Role.CONTROLLER, Role.PLACEMENT, Role.TENSORSTORE, Role.ENGINE)


def equip(directory: Path) -> None:
    """Certificates for the services and the operator: those that are lacking, and younger ones for
    those that are due. Raises FailedPrecondition and OSError."""
    now, authority = datetime.now(UTC), AuthorityDirectory(directory)
    homes = [authority.home_of(Identity(role)) for role in (*_SERVICES, Role.OPERATOR)]
    for role, home in zip((*_SERVICES, Role.OPERATOR), homes, strict=True):
        if not (home / CERTIFICATE).exists():
            write(authority.issue(Wish(Identity(role), hosts_of(()), LIFE), now), home)
    _, faults = renew(FromAuthority(directory), homes, now)
    if faults:
        raise FailedPrecondition(faults[0])


def environment(directory: Path) -> Mapping[str, str]:
    """Settings by which each service shows its own, and everything else the operator's."""
    own = {f"SHUNT_{role.upper()}_TLS__DIRECTORY": str(directory / role) for role in _SERVICES}
    return {**own, TlsSettings.name_of("directory"): str(directory / Role.OPERATOR)}


async def keep_young(directory: Path) -> None:
    """For as long as the mesh runs."""
    while True:
        await asyncio.sleep(PAUSE_S)
        await asyncio.to_thread(keep, FromAuthority(directory), directory, datetime.now(UTC))
