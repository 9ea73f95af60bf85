"""Settings of the launcher, from SHUNT_LAUNCHER_*."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServiceSettings

_NAME = r"^[a-z0-9][a-z0-9_.-]{0,62}$"


class LauncherSettings(ServiceSettings):
    """Names end in their unit; `_s` is seconds."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_LAUNCHER_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    shutdown_grace_s: float = Field(default=0.5, ge=0, le=600)
    """Told to stop, open calls have this long to end by themselves."""
    socket: str = Field(default="unix:///var/run/docker.sock", pattern=r"^unix://.+$")
    """Docker's."""
    project: str = Field(pattern=_NAME)
    """The compose project whose engines these are; nothing else is touched."""
    pattern: str = Field(default="engine", pattern=_NAME)
    """The service of the compose file that says what an engine's container is like."""
    image: str = Field(default="shunt-engine", min_length=1, max_length=256)
    """The only image that is started."""
    network: str = ""
    """The only network that containers join; empty: the project's `mesh`."""
    max_containers: int = Field(default=16, ge=1, le=1000)
    """That run at a time."""
    call_timeout_s: float = Field(default=20.0, gt=0, le=600)
    """Of one call of Docker."""
    retry_s: float = Field(default=0.5, gt=0, le=60)
    """Docker is asked again so soon after it did not answer."""

    @property
    def only_network(self) -> str:
        """By name."""
        return self.network or f"{self.project}_mesh"
