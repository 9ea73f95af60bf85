"""`shunt ec2 down`: ends a mesh whole, whatever state it is in, and says what it ended and what it
leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.cli.ec2.account import AwsRefusal
from services.cli.ec2.bucket import Bucket, files_prefix, left_behind
from services.cli.ec2.home import Home
from services.cli.ec2.machines import ENDING, Machine, Volume
from services.cli.ec2.stack import StackView, Tell


@dataclass(slots=True)
class Ended:
    """What is no more, and what is still there."""

    machines: list[Machine] = field(default_factory=list)
    volumes: list[Volume] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    stack: bool = False
    authority: bool = False
    files: int = 0
    """Of its tenants, and what they were answered: which is whose, the journal knew."""
    objects: int | None = None
    """Of the bucket that was deleted; None where none was."""
    left: list[str] = field(default_factory=list)

    @property
    def is_nothing(self) -> bool:
        return not (
            self.machines
            or self.volumes
            or self.parameters
            or self.stack
            or self.authority
            or self.files
            or self.objects is not None
        )

    @property
    def lines(self) -> list[str]:
        """In words."""
        nodes = sum(machine.role == "node" for machine in self.machines)
        counted = (
            (nodes, "nodes"),
            (len(self.machines) - nodes, "hosts"),
            (len(self.volumes), "volumes"),
            (len(self.parameters), "parameters, certificates and keys among them"),
            (self.files, "files of batches"),
        )
        found = [f"ended {count} {what}" for count, what in counted if count]
        if self.stack:
            found.append("deleted the stack")
        if self.authority:
            found.append("deleted the mesh's authority and its certificates here")
        if self.objects is not None:
            found.append(f"deleted the bucket and its {self.objects} objects")
        return [*found, *(f"left: {what}" for what in self.left)]


def take_down(home: Home, tell: Tell, *, delete_models: bool) -> Ended:
    """The hosts first, for a controller buys anew what is taken from it; then what it bought, the
    stack, and what no stack deletes. Raises MeshError; the same again goes on."""
    ended, machines = Ended(), home.machines
    view = home.stack.view()
    hosts = machines.hosts(ENDING)
    if view.status:
        machines.empty(home.stack.groups())
    ended.machines += machines.end(lambda: machines.hosts(ENDING), tell, hosts)
    ended.machines += machines.end(lambda: machines.nodes(ENDING), tell)
    ended.stack = home.stack.delete()
    # What the controller had ordered when it ended may show only now.
    ended.machines += machines.end(lambda: machines.nodes(ENDING), tell)
    ended.volumes = machines.delete_volumes()
    ended.parameters = home.parameters.names()
    home.parameters.delete(ended.parameters)
    ended.authority = home.keyring.forget()
    _bucket(home, view, ended, delete_models)
    return ended


def _bucket(home: Home, view: StackView, ended: Ended, delete_models: bool) -> None:
    """Only one that a stack of this mesh has made: another's is left even where it was used, all
    but the mesh's files."""
    own, used = left_behind(home.account, home.mesh), view.outputs.get("Bucket")
    if used and used != own:
        ended.files += Bucket(home.account, used).forget(files_prefix(home.mesh))
        ended.left.append(f"bucket {used}, which is not the mesh's own")
    if own is None:
        return
    bucket = Bucket(home.account, own)
    if delete_models:
        ended.objects = bucket.delete()
        return
    ended.files += bucket.forget(files_prefix(home.mesh))
    try:
        size = f" with {bucket.size_bytes() / 1e9:.2f} GB of models"
    except AwsRefusal:  # who may not look is told of it all the same
        size = ""
    ended.left.append(f"bucket {own}{size} (--delete-models)")
