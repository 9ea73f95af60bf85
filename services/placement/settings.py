"""Settings of the placement service, from SHUNT_PLACEMENT_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServiceSettings


class PlacementSettings(ServiceSettings):
    """`catalogue` is a directory that overlays the shipped YAML files."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_PLACEMENT_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    catalogue: Path | None = None
    """Directory of YAML files that lie over those that come with it: devices, instances, models."""
    max_searches: int = Field(default=2, ge=1, le=64)
    """Searches at a time; others wait."""
    max_search_s: float = Field(default=60.0, gt=0, le=3600)
    """The longest search, whatever its caller's deadline is."""
    deadline_margin_s: float = Field(default=0.15, ge=0, le=10)
    """Left of the caller's deadline for the answer to travel."""
