"""Settings of `shunt node`, from SHUNT_NODE_*; what it finds by itself need not be said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import DirectoryPath, Field, FilePath, field_validator
from pydantic_settings import SettingsConfigDict

from services.common import mesh_token
from services.common.addresses import addresses_of, checked_addresses
from services.common.settings import ServiceSettings

ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Where EC2's metadata is, as boto3 has it."""


class NodeSettings(ServiceSettings):
    """One machine. `host` and `grpc_port` are where its health is told."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_NODE_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    controller: str = Field(min_length=1)
    """host:port of the controller, or of several of which one is it, between commas."""
    store: str = Field(min_length=1)
    """A path, file:// or s3://bucket/prefix: what the machine's tensor store is a cache of."""
    id: str = Field(default="", max_length=128)
    """The node's name; empty: that of its token, the instance's id, or the host's name."""
    metadata: str = Field(default_factory=lambda: os.environ.get(ENDPOINT_VARIABLE, ""))
    """URL of the cloud's metadata service, where it is not where such a cloud has it."""
    cloud: Literal["auto", "ec2", "gcp", "azure", "none"] = "auto"
    """`auto`: by the machine's firmware; EC2's where that says nothing and `metadata` is set."""
    certificates: DirectoryPath | None = None
    """Holds certificate.pem, key.pem and authority.pem."""
    join_token: FilePath | None = None
    """Holds the mesh's token, or one of this node alone."""

    engine_host: str = ""
    """Address that the engine listens on; empty: loopback where the controller is on it, else
    any."""
    engine_port: int = Field(default=0, ge=0, le=65535)
    """Port of the engine's gRPC API; 0: a free one."""
    advertise_host: str = ""
    """Host that others reach the engine by; empty: the address that the controller is reached
    from."""
    cache_directory: Path | None = None
    """Where the machine's tensor store keeps what it has read."""
    cache_bytes: int | None = Field(default=None, ge=1 << 20)
    """Size of that cache, at most; unset: the tensor store's own default."""
    memory_share: float | None = Field(default=None, gt=0, le=1)
    """Of the memory where the engine computes, for weights and KV cache; unset: 0.9 of a GPU's,
    0.6 of the host's."""

    notice_poll_s: float = Field(default=5.0, ge=0.05, le=60)
    """The metadata service is asked this often whether the machine is to be taken."""
    metadata_timeout_s: float = Field(default=2.0, gt=0, le=60)
    """For one answer."""
    metadata_wait_s: float = Field(default=10.0, ge=0, le=600)
    """For what the metadata service says of the machine, before the engine starts without."""
    drain_s: float = Field(default=60.0, ge=0, le=3600)
    """Told to stop, the engine serves on for this long, or until its stage was handed over."""
    restart_first_s: float = Field(default=0.5, gt=0, le=60)
    """A part that dies is started again after this long; from then on the pause doubles."""
    restart_longest_s: float = Field(default=30.0, gt=0, le=600)
    """A part that dies is started again after pauses that double from the first to the longest."""
    stable_s: float = Field(default=10.0, gt=0, le=600)
    """One that lived for so long begins with the first pause again."""
    stop_grace_s: float = Field(default=5.0, ge=0, le=600)
    """Behind its deadline, or told to stop, a part has this long before it is killed."""

    @field_validator("controller")
    @classmethod
    def _addresses(cls, text: str) -> str:
        return checked_addresses(text)

    @field_validator("metadata")
    @classmethod
    def _url(cls, text: str) -> str:
        parts = urlsplit(text)
        if text and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("is a URL: http://host:port")
        if parts.query or parts.fragment or not text.isprintable():
            raise ValueError("is a URL without query and fragment")
        return text

    @field_validator("store")
    @classmethod
    def _place(cls, text: str) -> str:
        if urlsplit(text).scheme not in ("", "file", "s3"):
            raise ValueError("is a path, file://… or s3://bucket/prefix")
        return text

    @property
    def own_node_id(self) -> str:
        """As far as it is known before anybody is asked."""
        return self.id or mesh_token.node_of(mesh_token.own())

    @property
    def controllers(self) -> tuple[str, ...]:
        """Each address."""
        return addresses_of(self.controller)
