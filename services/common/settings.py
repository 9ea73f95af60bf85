"""Settings that every service has, and the way they are read: once, in __main__."""

from __future__ import annotations

import argparse
import ipaddress
import os
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar

from pydantic import DirectoryPath, Field, FilePath, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.common import mesh_token
from services.common.certificate_files import AUTHORITY, CERTIFICATE, KEY
from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import InvalidArgument

S = TypeVar("S", bound=BaseSettings)
_INCOMPLETE = "incomplete"
_UNUSABLE = "unusable"
TLS_FILES = {"certificate": CERTIFICATE, "key": KEY, "authority": AUTHORITY}
"""Settings of TLS that name a file, and its name in a directory of certificates."""


class _InDirectory(PydanticBaseSettingsSource):
    """Files of the directory that another source names."""

    def __init__(
        self, settings_cls: type[BaseSettings], named_by: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(settings_cls)
        self._named_by = named_by

    def __call__(self) -> dict[str, Any]:
        directory = Path(self._named_by().get("directory") or os.devnull)
        paths = {name: directory / file for name, file in TLS_FILES.items()}
        return {name: path for name, path in paths.items() if path.is_file()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False


class TlsSettings(BaseSettings):
    """Mutual TLS between services; all three files, or none. The certificate's role decides what
    its holder may call (roles.py). Files that are replaced are taken up while they are used."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_TLS_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    certificate: FilePath | None = None
    """The service's own, PEM, with the names that it is reached by."""
    key: FilePath | None = None
    """That of the certificate, PEM."""
    authority: FilePath | None = None
    """Certificates of who may have issued those of others, PEM."""

    directory: DirectoryPath | None = None
    """Of certificate.pem, key.pem and authority.pem, for files that are not named one by one."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """A service's own directory comes before files that are named for all."""
        return (
            init_settings,
            _InDirectory(settings_cls, init_settings),
            env_settings,
            _InDirectory(settings_cls, env_settings),
        )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        absent = [name for name in TLS_FILES if getattr(self, name) is None]
        if absent and self.directory is not None:
            raise PydanticCustomError(
                _INCOMPLETE,
                "{name}: {directory} has no {file}",
                {
                    "name": self.name_of("directory"),
                    "directory": str(self.directory),
                    "file": TLS_FILES[absent[0]],
                },
            )
        if 0 < len(absent) < len(TLS_FILES):
            raise PydanticCustomError(
                _INCOMPLETE,
                "{name}: TLS needs certificate, key and authority",
                {"name": self.name_of(absent[0])},
            )
        certificate, key = self.certificate, self.key
        if certificate is not None and key is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            together = f"{self.name_of('certificate')} and {self.name_of('key')}"
            self._try(together, lambda: context.load_cert_chain(certificate, key))
            authority = self.name_of("authority")
            self._try(authority, lambda: context.load_verify_locations(self.authority))
        return self

    @staticmethod
    def _try(names: str, load: Callable[[], object]) -> None:
        try:
            load()
        except OSError as error:  # SSLError is one
            reason = {"names": names, "reason": error.strerror or str(error)}
            raise PydanticCustomError(_UNUSABLE, "{names}: {reason}", reason) from error

    @property
    def enabled(self) -> bool:
        return self.certificate is not None

    @staticmethod
    def name_of(field: str) -> str:
        """The environment variable of a field."""
        return f"SHUNT_TLS_{field.upper()}"


class ServiceSettings(BaseSettings):
    """What every service's settings begin with; a subclass sets its env_prefix."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_nested_delimiter="__")

    host: str = "127.0.0.1"
    """Address that it listens on; beyond loopback it needs certificates or the mesh's token."""
    grpc_port: int = Field(default=0, ge=0, le=65535)
    """Port of its gRPC API; 0: a free one."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of /metrics; 0: a free one; unset: it is not served."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least that its log, JSON lines on stderr, has."""
    environment: Literal["development", "production"] = "development"
    """In development the API can be listed (gRPC reflection)."""
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1 << 20, le=1 << 30)
    """The largest gRPC message that it sends or takes: the same for all services of a mesh."""
    max_concurrent_rpcs: int = Field(default=4096, ge=1)
    """Calls that it serves at a time; one more is refused."""
    shutdown_grace_s: float = Field(default=5.0, ge=0, le=600)
    """Told to stop, open calls have this long to end by themselves."""
    tls: TlsSettings = Field(default_factory=TlsSettings)
    """Certificates of this service alone; else those of SHUNT_TLS_*."""

    @property
    def is_for_the_mesh(self) -> bool:
        """Only other services and operators have business here."""
        return True

    @property
    def own_node_id(self) -> str:
        """The node that the process speaks for; empty where it is no engine."""
        return ""

    def name_of(self, field: str) -> str:
        """The environment variable of a field."""
        return f"{self.model_config.get('env_prefix') or ''}{field}".upper()


def read(kind: type[S]) -> S:
    """The settings from the environment; a bad one names its field on stderr and exits 2."""
    try:
        found = kind()
    except ValidationError as error:
        tls = error.title == TlsSettings.__name__
        prefix = str((TlsSettings if tls else kind).model_config.get("env_prefix") or "")
        for fault in error.errors():
            name = prefix + "__".join(str(part) for part in fault["loc"])
            told = f"{name.upper()}: {fault['msg'].removeprefix('Value error, ')}"
            if fault["type"] in (_INCOMPLETE, _UNUSABLE):  # of several settings; its text names one
                told = fault["msg"]
            print(f"bad setting {told}", file=sys.stderr)
        sys.exit(2)
    try:
        token = mesh_token.own()
    except InvalidArgument as error:
        refuse(error.field, error.message)
    if isinstance(found, ServiceSettings):
        _hand_on(found.tls)
        _check_reach(found, token)
        if not found.tls.enabled:
            _narrow(found, token)
    return found


def take_no_arguments(kind: type[BaseSettings]) -> None:
    """For a process that is told by its environment alone: --help says so, and anything else that
    it is told on its command line ends it with 2."""
    prefix = str(kind.model_config.get("env_prefix") or "")
    argparse.ArgumentParser(
        prog=f"python -m {kind.__module__.rpartition('.')[0]}",
        description=f"Takes no arguments: its settings are the variables {prefix}... of the"
        " environment, which docs/settings.md tells of.",
    ).parse_args()


def refuse(name: str, reason: str) -> NoReturn:
    """For a setting that reads well but cannot be had: names it on stderr and exits 2."""
    print(f"bad setting {name}: {reason}", file=sys.stderr)
    sys.exit(2)


def _check_reach(found: ServiceSettings, token: str) -> None:
    """Whoever reaches an open service of the mesh may register as any node, and read and end what
    everybody asked: beyond this host, nobody may without certificates or a token."""
    if found.is_for_the_mesh and not (token or found.tls.enabled or is_loopback(found.host)):
        refuse(
            mesh_token.VARIABLE,
            f"beyond loopback ({found.name_of('host')}={found.host}) a mesh needs a token, the"
            f" same for all its services (or {mesh_token.FILE_VARIABLE}), or mutual TLS",
        )


def _narrow(found: ServiceSettings, token: str) -> None:
    """An engine goes on with its node's token, whatever it was given; no other service can."""
    node_id, name = mesh_token.node_of(token), found.own_node_id
    if node_id and not name:
        refuse(mesh_token.VARIABLE, f"this service needs the mesh's token, not node {node_id}'s")
    if node_id and node_id != name:
        refuse(found.name_of("node_id"), f"the token is node {node_id}'s alone")
    if name:
        os.environ.update(mesh_token.narrowed(name))


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this host alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _hand_on(tls: TlsSettings) -> None:
    """A service may have certificates of its own (SHUNT_<SERVICE>_TLS__*). The tensor store's
    client knows no service: it reads SHUNT_TLS_* of the process it is in."""
    for name in TLS_FILES:
        if (path := getattr(tls, name)) is not None:
            os.environ[tls.name_of(name)] = str(path)
