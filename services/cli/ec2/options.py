"""What a mesh on EC2 is asked to be, checked before anybody is asked for anything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from services.cli.ec2.files import TYPES
from services.cli.ec2.purchase import Wish
from services.cli.layout import MODEL
from services.cli.mesh_directory import MeshError
from services.common.errors import ShuntError
from services.controller.providers.ec2.bounds import MAX_DOLLARS_PER_HOUR, MAX_INSTANCES
from services.controller.providers.ec2.settings import counts_by_type
from services.controller.providers.ec2.table import Table, parse_table, read_table
from services.placement.command.words import in_words
from services.placement.estimate.cluster import Workload
from services.placement.search.problem import Objective, ObjectiveKind
from services.tensorstore.cli import DEFAULT_STORE

MESH = "shunt"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
MAX_ROUTERS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """Of `plan` and `up` alike."""

    mesh: str = MESH
    region: str = ""
    model: str = MODEL
    store: str = DEFAULT_STORE
    types: Path = TYPES
    standing_types: str = ""
    """Text of the mesh's own types, in place of that file."""
    nodes: str = ""
    """TYPE:COUNT,… to begin with; empty: the planner's choice."""
    objective: str = ObjectiveKind.THROUGHPUT_PER_COST.value
    budget_per_hour: float = 0.0
    max_instances: int = 20
    max_dollars_per_hour: float = 50.0
    routers: int = 2
    input_tokens: int = 763
    output_tokens: int = 232
    rate: float = 0.0

    def checked(self) -> Options:
        """Raises MeshError, naming the option and its limit."""
        check_mesh(self.mesh)
        for flag, value, low, high in (
            ("--max-instances", self.max_instances, 1, MAX_INSTANCES),
            ("--max-dollars-per-hour", self.max_dollars_per_hour, 0.01, MAX_DOLLARS_PER_HOUR),
            ("--budget-per-hour", self.budget_per_hour, 0, MAX_DOLLARS_PER_HOUR),
            ("--routers", self.routers, 1, MAX_ROUTERS),
        ):
            if not low <= value <= high:
                raise MeshError(f"{flag}: {value:g} is not from {low:g} to {high:g}")
        if self.objective not in {kind.value for kind in ObjectiveKind}:
            known = ", ".join(kind.value for kind in ObjectiveKind)
            raise MeshError(f"--objective: {self.objective[:40]!r} is none of {known}")
        self.wish(self.table)
        return self

    @property
    def table(self) -> Table:
        """What may be bought. Raises MeshError."""
        try:
            if self.standing_types:
                return parse_table(self.standing_types, self.types.name)
            return read_table(self.types)
        except ShuntError as error:
            raise MeshError(f"--types: {error.message}") from None

    @property
    def types_text(self) -> str:
        """What the controller's host reads."""
        return self.standing_types or self.types.read_text()

    def wish(self, table: Table) -> Wish:
        """Raises MeshError."""
        try:
            counts = counts_by_type(self.nodes) if self.nodes else None
        except ValueError as error:
            raise MeshError(f"--nodes: {error}") from None
        unknown = sorted((counts or {}).keys() - table.types.keys())
        if unknown:
            raise MeshError(f"--nodes: {unknown[0]} is no type of {self.types.name}")
        wanted = sum((counts or {}).values())
        if wanted > self.max_instances:
            raise MeshError(f"--nodes: {wanted} nodes, and --max-instances is {self.max_instances}")
        try:
            objective = Objective(
                ObjectiveKind(self.objective), budget_per_hour=self.budget_per_hour
            )
            workload = Workload(self.input_tokens, self.output_tokens, self.rate)
        except ShuntError as error:
            raise MeshError(in_words(error, budget_per_hour="--budget-per-hour")) from None
        return Wish(objective, workload, self.max_instances, self.max_dollars_per_hour, counts)


def check_mesh(name: str) -> None:
    """A mesh's name is its stack's, too. Raises MeshError."""
    if not _NAME.fullmatch(name):
        raise MeshError(
            f"--mesh: {name[:40]!r} is not 1 to 32 small letters, digits and hyphens, the first"
            " a letter"
        )
