"""Certificates that name their node, for the instances of a mesh: in parameters that each one's
machine alone may read.

/shuntserve/MESH/certificates/engine/INSTANCE/{authority,certificate,key}.pem, tagged
shuntserve:instance=ARN, by which the nodes' role is let in. Who runs this has the authority's key,
and so is not on a machine that serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from services.cli.certs.authority import Wish, hosts_of, identity_from, read_issued
from services.cli.certs.directory import AuthorityDirectory
from services.cli.ec2.account import Account
from services.common.certificate_files import AUTHORITY, CERTIFICATE, KEY, Pem
from services.common.errors import ShuntError
from services.common.roles import Role
from services.controller.providers.ec2.inventory import MESH_TAG, NODE_TAG

INSTANCE_TAG = "shuntserve:instance"
_LIVING = ("pending", "running", "shutting-down", "stopping")
_DELETED_AT_ONCE = 10
"""More names no call takes."""


@dataclass(frozen=True, slots=True)
class _Machine:
    """An instance of the mesh."""

    instance_id: str
    node_id: str
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class NodeCertificates:
    """Of one mesh."""

    account: Account
    mesh: str
    authority: Path
    life: timedelta

    def look(self, now: datetime) -> tuple[int, list[str]]:
        """Issues what nodes lack or should have anew, deletes what is of instances that are gone.
        How many were issued, and what could not be done, a line each. Raises AwsRefusal, and
        FailedPrecondition without an authority."""
        signer, issued, faults = AuthorityDirectory(self.authority), 0, list[str]()
        known, machines = self._known(), {one.instance_id: one for one in self._machines()}
        for instance_id, machine in machines.items():
            if not machine.node_id:
                faults.append(f"{instance_id} has no tag {NODE_TAG}")
                continue
            try:
                wish = Wish(identity_from(Role.ENGINE, machine.node_id), machine.hosts, self.life)
                if not self._is_good(known, instance_id, wish, signer, now):
                    self._put(instance_id, signer.issue(wish, now), known)
                    issued += 1
            except ShuntError as error:
                faults.append(f"{instance_id}: {error.message}")
        self._delete([name for name in known if name.split("/")[-2] not in machines])
        return issued, faults

    @property
    def _path(self) -> str:
        return f"/shuntserve/{self.mesh}/certificates/{Role.ENGINE}"

    def _name(self, instance_id: str, file: str) -> str:
        return f"{self._path}/{instance_id}/{file}"

    def _known(self) -> Mapping[str, str]:
        """What stands in parameters of instances; keys are not decrypted."""
        pages = self.account.client("ssm").pages(
            "get_parameters_by_path", Path=self._path, Recursive=True, WithDecryption=False
        )
        rows = (row for page in pages for row in page["Parameters"])
        return {row["Name"]: row["Value"] for row in rows if f"{self._path}/i-" in row["Name"]}

    def _machines(self) -> Iterator[_Machine]:
        named = [
            {"Name": f"tag:{MESH_TAG}", "Values": [self.mesh]},
            {"Name": "instance-state-name", "Values": list(_LIVING)},
        ]
        for page in self.account.client("ec2").pages("describe_instances", Filters=named):
            for found in (one for group in page["Reservations"] for one in group["Instances"]):
                tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", ())}
                hosts = (found.get("PrivateIpAddress"), found.get("PrivateDnsName"))
                told = hosts_of([host for host in hosts if host])
                yield _Machine(found["InstanceId"], tags.get(NODE_TAG, ""), told)

    def _is_good(
        self,
        known: Mapping[str, str],
        instance_id: str,
        wish: Wish,
        signer: AuthorityDirectory,
        now: datetime,
    ) -> bool:
        held = [known.get(self._name(instance_id, name)) for name in (CERTIFICATE, KEY, AUTHORITY)]
        certificate, key, authority = held
        if certificate is None or key is None or authority is None:
            return False
        issued = read_issued(certificate.encode())
        same = (issued.wish.identity, set(issued.wish.hosts)) == (wish.identity, set(wish.hosts))
        made = signer.has_made(Pem(certificate.encode(), b"", authority.encode()))
        return same and made and not issued.is_due(now)

    def _put(self, instance_id: str, pem: Pem, known: Mapping[str, str]) -> None:
        """The certificate last: one that is there has its key."""
        partition = self.account.user.split(":")[1]
        where = f"{self.account.region}:{self.account.number}:instance/{instance_id}"
        tag = {"Key": INSTANCE_TAG, "Value": f"arn:{partition}:ec2:{where}"}
        for file, content in (
            (AUTHORITY, pem.authority),
            (KEY, pem.key),
            (CERTIFICATE, pem.certificate),
        ):
            name = self._name(instance_id, file)
            # Nobody may overwrite and tag in one call; what is there was tagged when it was made.
            how = {"Overwrite": True} if name in known else {"Tags": [tag]}
            self.account.client("ssm").put_parameter(
                Name=name,
                Value=content.decode(),
                Type="SecureString" if file == KEY else "String",
                Tier="Intelligent-Tiering",
                **how,
            )

    def _delete(self, names: list[str]) -> None:
        for first in range(0, len(names), _DELETED_AT_ONCE):
            self.account.client("ssm").delete_parameters(
                Names=names[first : first + _DELETED_AT_ONCE]
            )
