"""Where a mesh is at home: its name, its account, and its operator's directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.cli.ec2.account import Account
from services.cli.ec2.certificates import Keyring
from services.cli.ec2.machines import Machines
from services.cli.ec2.options import check_mesh
from services.cli.ec2.secrets import Parameters
from services.cli.ec2.stack import Stack, Tell

DIRECTORY = Path(".shunt/ec2")


@dataclass(frozen=True, slots=True)
class Home:
    """One mesh in one account."""

    mesh: str
    account: Account
    stack: Stack
    machines: Machines
    parameters: Parameters
    keyring: Keyring
    keys: Path
    """File of the API keys that its routers ask for."""

    @classmethod
    def open(cls, mesh: str, region: str, certificates: Path | None, tell: Tell) -> Home:
        """Raises MeshError."""
        check_mesh(mesh)
        account = Account.open(region)
        directory = DIRECTORY / mesh / "certificates" if certificates is None else certificates
        return cls(
            mesh,
            account,
            Stack(account, mesh, tell),
            Machines(account, mesh),
            Parameters(account, mesh),
            Keyring(directory, mesh, account.region),
            directory / "keys.json",
        )
