"""The certificates of a mesh on EC2: its authority stays with the operator, and each role's hosts
fetch theirs from the Parameter Store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.cli.certs.authority import Wish, hosts_of
from services.cli.certs.directory import (
    AUTHORITY_KEY,
    AuthorityDirectory,
    create_authority,
    read,
    read_issued_in,
    write,
)
from services.cli.ec2.secrets import Parameters
from services.cli.mesh_directory import MeshError
from services.common.certificate_files import AUTHORITY, CERTIFICATE, KEY, Pem
from services.common.errors import InvalidArgument, ShuntError
from services.common.roles import Identity, Role

LIFE = timedelta(days=30)
"""Nobody near the mesh has the authority's key: `shunt ec2 up` renews what is two thirds over."""
AUTHORITY_DAYS = 3650
OF_HOSTS = (Role.CONTROLLER, Role.PLACEMENT, Role.TENSORSTORE, Role.ROUTER, Role.ENGINE)
"""Roles whose certificates are fetched by hosts; the operator's stays here."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """A mesh's authority and what it has issued, in a directory of the operator's."""

    directory: Path
    mesh: str
    region: str

    @property
    def operator(self) -> Path:
        """The directory of the operator's own certificate."""
        return self.directory / Role.OPERATOR

    def renewed(self, gateway_host: str) -> Mapping[Role, Pem]:
        """Certificates of all roles, issued anew where one is due or says another host. Raises
        MeshError."""
        now = datetime.now(UTC)
        try:
            if not (self.directory / AUTHORITY_KEY).exists():
                create_authority(self.directory, self.mesh, AUTHORITY_DAYS, now)
            signer = AuthorityDirectory(self.directory)
            for role in (*OF_HOSTS, Role.OPERATOR):
                wish = Wish(Identity(role), hosts_of(self._hosts(role, gateway_host)), LIFE)
                home = signer.home_of(wish.identity)
                if not _is_good(home, wish, signer, now):
                    write(signer.issue(wish, now), home)
            return {role: read(signer.home_of(Identity(role))) for role in OF_HOSTS}
        except ShuntError as error:
            raise MeshError(f"--certificates: {error.message}") from None
        except OSError as error:
            raise MeshError(f"--certificates: {error.filename}: {error.strerror}") from None

    def _hosts(self, role: Role, gateway_host: str) -> tuple[str, ...]:
        """The names that others reach a role by, beside loopback."""
        names = {
            Role.CONTROLLER: (f"controller.{self.mesh}.shunt.internal", gateway_host),
            Role.ROUTER: (gateway_host,),
            Role.ENGINE: (_private_names(self.region),),
        }
        return names.get(role, ())

    def publish(self, parameters: Parameters, gateway_host: str) -> int:
        """Puts where hosts fetch it what they have not yet; how many roles that were. Raises
        MeshError where the mesh has another authority, whose key is elsewhere."""
        theirs = parameters.get(_name(Role.CONTROLLER, AUTHORITY))
        own = self.directory / AUTHORITY
        if theirs is not None and (not own.exists() or own.read_text() != theirs):
            raise MeshError(
                f"the mesh {self.mesh} has another authority than {self.directory}: name the"
                " directory that it was made with (--certificates)"
            )
        put = 0
        for role, pem in self.renewed(gateway_host).items():
            certificate = pem.certificate.decode()
            if parameters.get(_name(role, CERTIFICATE)) == certificate:
                continue
            values = {KEY: pem.key.decode(), CERTIFICATE: certificate}
            parameters.put({_name(role, k): v for k, v in values.items()}, secret=True)
            authority = {_name(role, AUTHORITY): pem.authority.decode()}
            parameters.put(authority, secret=False)
            put += 1
        return put

    def forget(self) -> bool:
        """Deletes authority and certificates; what else is there stays. False where there was
        none."""
        if not (self.directory / AUTHORITY_KEY).exists():
            return False
        for name in (AUTHORITY_KEY, AUTHORITY):
            (self.directory / name).unlink(missing_ok=True)
        for role in (*OF_HOSTS, Role.OPERATOR):
            for name in (KEY, CERTIFICATE, AUTHORITY):
                (self.directory / role / name).unlink(missing_ok=True)
        return True


def _is_good(home: Path, wish: Wish, signer: AuthorityDirectory, now: datetime) -> bool:
    try:
        issued = read_issued_in(home)
        same = set(issued.wish.hosts) == set(wish.hosts)
        return same and not issued.is_due(now) and signer.has_made(read(home))
    except (ShuntError, InvalidArgument):
        return False


def _name(role: Role, file: str) -> str:
    return f"certificates/{role}/{file}"


def _private_names(region: str) -> str:
    """That EC2 gives instances inside a VPC."""
    return "*.ec2.internal" if region == "us-east-1" else f"*.{region}.compute.internal"
