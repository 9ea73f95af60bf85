"""Settings of the EC2 provider, from SHUNT_CONTROLLER_EC2__*."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from services.common.errors import ShuntError
from services.common.nodes import NodeShape
from services.controller.providers.ec2.bounds import (
    MAX_DOLLARS_PER_HOUR,
    MAX_INSTANCES,
    Bounds,
)
from services.controller.providers.ec2.cloud_config import CloudConfig, read_cloud_config
from services.controller.providers.ec2.orders import Template
from services.controller.providers.ec2.table import Table, read_table

MAX_FIRST = 1000


class Ec2Settings(BaseModel):
    """Names end in their unit; `_s` is seconds. Region, credentials and endpoints are found as
    boto3 finds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str = Field(default="", max_length=32)
    """Empty: as boto3 finds it."""
    mesh: str = Field(default="", max_length=64, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")
    """The tag that this mesh's instances carry: no other mesh of the account may have it."""
    launch_template: str = Field(default="", max_length=128)
    """Name or id (lt-…) of what instances are made from."""
    launch_template_version: str = Field(default="$Default", pattern=r"^(\$Default|\$Latest|\d+)$")
    """A number, or what the template calls its default or its latest one."""
    types_file: Path | None = None
    """YAML: which instance types may be bought, and what each one is."""
    cloud_config: Path | None = None
    """What every node's user data begins with; the image need not have the node's unit then."""
    first_nodes: str = ""
    """What the mesh begins with, by type: g6e.xlarge:4,g5.12xlarge:1."""
    subnets: str = Field(default="", max_length=1024)
    """Ids, parted by commas, one a zone; empty: the default ones of the region."""
    max_instances: int = Field(default=20, ge=1, le=MAX_INSTANCES)
    """Instances that the mesh has at a time, at most."""
    max_dollars_per_hour: float = Field(default=50.0, gt=0, le=MAX_DOLLARS_PER_HOUR)
    """Of all instances, each at its price on demand, which a spot price never exceeds."""
    price_slack: float = Field(default=0.0, ge=0, le=1)
    """EC2 may choose another zone of the same type and market that costs so much more, in parts of
    the price."""
    queue_url: str = Field(default="", max_length=1024)
    """SQS queue with EventBridge's events of EC2; empty: nodes tell of their notices themselves."""
    queue_wait_s: int = Field(default=20, ge=1, le=20)
    """A look into the queue waits this long for a message."""
    look_s: float = Field(default=10.0, gt=0, le=600)
    """How often instances are described."""
    price_s: float = Field(default=60.0, gt=0, le=3600)
    """How often spot prices are asked for."""
    score_s: float = Field(default=1800.0, ge=0, le=86_400)
    """How often placement scores are asked for, which EC2 rations; 0: never."""
    consistency_s: float = Field(default=10.0, ge=0, le=600)
    """EC2 may not show for so long what it has just started."""
    capacity_pause_s: float = Field(default=180.0, gt=0, le=600)
    """An offer that had no capacity is left alone for so long."""
    operator_pause_s: float = Field(default=600.0, gt=0, le=600)
    """One that an operator has to see to, for so long."""
    call_limit_s: float = Field(default=40.0, gt=0, le=600)
    """A call that fails in passing is tried again for so long."""

    @field_validator("types_file")
    @classmethod
    def _can_be_read(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                read_table(path)
            except ShuntError as error:
                raise ValueError(error.message) from None
        return path

    @field_validator("cloud_config")
    @classmethod
    def _is_a_cloud_config(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                read_cloud_config(path)
            except ShuntError as error:
                raise ValueError(error.message) from None
        return path

    @field_validator("first_nodes")
    @classmethod
    def _are_in_the_table(cls, text: str, info: ValidationInfo) -> str:
        counts = counts_by_type(text)
        path = info.data.get("types_file")
        if path is not None:
            for name in counts.keys() - read_table(path).types.keys():
                raise ValueError(f"{name} is no type of {path.name}")
        return text

    @property
    def lacking(self) -> str:
        """A setting that there must be and is not; empty where none is."""
        needed = ("mesh", "launch_template", "types_file", "first_nodes")
        return next((name for name in needed if not getattr(self, name)), "")

    @cached_property
    def table(self) -> Table:
        """What may be bought. Raises as `read_table`."""
        assert self.types_file is not None, "it is asked for where the provider is this one"
        return read_table(self.types_file)

    @cached_property
    def node_config(self) -> CloudConfig:
        """What every node begins with. Raises as `read_cloud_config`."""
        return CloudConfig() if self.cloud_config is None else read_cloud_config(self.cloud_config)

    @property
    def shapes(self) -> tuple[NodeShape, ...]:
        """Of the first nodes."""
        types = self.table.types
        return tuple(
            types[name].shape
            for name, count in counts_by_type(self.first_nodes).items()
            for _ in range(count)
        )

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.max_instances, self.max_dollars_per_hour)

    @property
    def template(self) -> Template:
        return Template(self.launch_template, self.launch_template_version)

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.subnets.split(",") if part.strip())


def counts_by_type(text: str) -> dict[str, int]:
    """TYPE:COUNT,… by type, as they stand there. Raises ValueError."""
    counts: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.strip().partition(":")
        if not name or not count.isdecimal() or not 1 <= int(count) <= MAX_FIRST:
            raise ValueError(
                f"{part.strip()!r} is not TYPE:COUNT, with a count of 1 to {MAX_FIRST}"
            )
        if name in counts:
            raise ValueError(f"{name} stands twice")
        counts[name] = int(count)
    return counts
