"""Settings that every service has, and the way they are read: once, in __main__."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

S = TypeVar("S", bound=BaseSettings)


class TlsSettings(BaseSettings):
    """Mutual TLS between services; all three files, or none."""

    model_config = SettingsConfigDict(env_prefix="SHUNT_TLS_", frozen=True, extra="ignore")

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    @property
    def enabled(self) -> bool:
        return self.certificate is not None


class ServiceSettings(BaseSettings):
    """What every service's settings begin with; a subclass sets its env_prefix."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_nested_delimiter="__")

    host: str = "127.0.0.1"
    grpc_port: int = Field(default=0, ge=0, le=65535)
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    environment: Literal["development", "production"] = "development"
    max_message_bytes: int = Field(default=64 << 20, ge=1 << 20, le=1 << 30)
    max_concurrent_rpcs: int = Field(default=4096, ge=1)
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=600)
    tls: TlsSettings = Field(default_factory=TlsSettings)


def read(kind: type[S]) -> S:
    """The settings from the environment; a bad one names its field on stderr and exits 2."""
    try:
        return kind()
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix") or "")
        for fault in error.errors():
            name = prefix + "__".join(str(part) for part in fault["loc"])
            print(f"bad setting {name.upper()}: {fault['msg']}", file=sys.stderr)
        sys.exit(2)
