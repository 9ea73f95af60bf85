"""The cloud-config that every node of a mesh begins with: what a public image lacks of a node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.errors import InvalidArgument
from services.common.yaml_file import Row, read_yaml

FIRST_LINE = "#cloud-config"
MAX_BYTES = 12 << 10
"""EC2 takes 16 KiB of user data; the rest is for the node's own."""


class File(Row):
    """One of `write_files`."""

    path: str = Field(pattern=r"^/")
    content: str
    encoding: Literal["text/plain", "b64"] = "text/plain"
    permissions: str = Field(default="0644", pattern=r"^0[0-7]{3}$")


class CloudConfig(Row):
    """These keys of cloud-init and no others: one that it does not know it passes over, and says so
    to nobody."""

    packages: tuple[str, ...] = ()
    bootcmd: tuple[str | tuple[str, ...], ...] = ()
    write_files: tuple[File, ...] = ()
    runcmd: tuple[str | tuple[str, ...], ...] = ()


def read_cloud_config(path: Path) -> CloudConfig:
    """Raises InvalidArgument, naming file and key, and NotFound for a file that cannot be read."""
    config = read_yaml(path, CloudConfig)
    text = path.read_text()
    if text.partition("\n")[0].rstrip() != FIRST_LINE:
        raise InvalidArgument(f"{path.name} does not begin with {FIRST_LINE}", field=path.name)
    if len(text.encode()) > MAX_BYTES:
        raise InvalidArgument(f"{path.name} is over {MAX_BYTES} bytes", field=path.name)
    return config
