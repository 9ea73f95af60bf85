"""Settings of the tensor store, from SHUNT_TENSORSTORE_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServiceSettings
from services.tensorstore.places.uris import DEFAULT_CACHE_BYTES


class TensorStoreSettings(ServiceSettings):
    """A store that is a directory of this host is served in place, unless a cache is named.

    `memory_directory` (a tmpfs) is a second cache in front; `peers` (host:port) are asked before
    the store; what others read from here takes at most `peer_share` of `link_bytes_per_s`.
    """

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_TENSORSTORE_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    store: str = ".shunt/store"
    """What it serves: a directory, s3://bucket/prefix, or grpc://host:port of another one."""
    endpoint_url: str | None = None
    """Of S3, where that is not AWS's."""
    cache_directory: Path | None = None
    """Where it keeps what it has read from the store; unset: a store that is a directory of this
    host is served in place."""
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, ge=1 << 20)
    """Size of that cache, at most."""
    memory_directory: Path | None = None
    """A second cache in front of it, on a tmpfs."""
    memory_bytes: int = Field(default=8 << 30, ge=1 << 20)
    """Size of that one, at most."""
    import_directory: Path | None = None
    """What lies directly in it may be imported by whoever calls; unset: nothing."""
    peers: tuple[str, ...] = Field(default=(), max_length=64)
    """Other stores, as JSON a list of host:port, that are asked before the store."""
    peer_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """A peer has this long for an answer."""
    link_bytes_per_s: float = Field(default=1.25e9, gt=0)
    """What the host's network carries."""
    peer_share: float = Field(default=0.5, gt=0, le=1)
    """Share of it that others may take by reading from here."""
    hold_s: float = Field(default=600.0, gt=0, le=86400)
    """What an engine has opened stays in the caches while it reads, and no longer than this."""
    max_steps: int = Field(default=8, ge=1, le=64)
    """Imports and openings at a time; one more is refused."""
