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
    endpoint_url: str | None = None
    cache_directory: Path | None = None
    cache_bytes: int = Field(default=DEFAULT_CACHE_BYTES, ge=1 << 20)
    memory_directory: Path | None = None
    memory_bytes: int = Field(default=8 << 30, ge=1 << 20)
    import_directory: Path | None = None
    peers: tuple[str, ...] = Field(default=(), max_length=64)
    peer_timeout_s: float = Field(default=30.0, gt=0, le=600)
    link_bytes_per_s: float = Field(default=1.25e9, gt=0)
    peer_share: float = Field(default=0.5, gt=0, le=1)
    hold_s: float = Field(default=600.0, gt=0, le=86400)
    max_steps: int = Field(default=8, ge=1, le=64)
