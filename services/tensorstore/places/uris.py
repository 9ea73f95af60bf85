"""From a store's URI to what reads and writes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.common.errors import InvalidArgument
from services.common.roles import Role
from services.tensorstore.places.backend import Backend, ObjectReader
from services.tensorstore.places.directory import DirectoryBackend

DEFAULT_CACHE_BYTES = 64 << 30
_GRPC = "grpc://"


def local_path(uri: str) -> Path | None:
    """The directory a URI names, None for another scheme."""
    parts = urlsplit(uri)
    if parts.scheme == "":
        return Path(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None


def open_backend(uri: str, endpoint_url: str | None = None) -> Backend:
    """A path, file:// or s3://bucket/prefix; raises InvalidArgument for anything else."""
    root = local_path(uri)
    if root is not None:
        return DirectoryBackend(root)
    if urlsplit(uri).scheme == "s3":
        from services.tensorstore.places.s3 import S3Backend  # boto3 is heavy, and not everywhere

        return S3Backend(uri, endpoint_url)
    raise InvalidArgument("a store is a path, file://… or s3://bucket/prefix", field="store")


def open_reader(uri: str, endpoint_url: str | None = None) -> ObjectReader:
    """Like open_backend, but knows a running service too, as `service_of` does."""
    service = service_of(uri)
    if service is not None:
        from services.tensorstore.places.remote import RemoteReader  # grpc likewise

        return RemoteReader(service.address, service.role)
    return open_backend(uri, endpoint_url)


@dataclass(frozen=True, slots=True)
class StoreService:
    """A running tensor store."""

    address: str
    role: Role
    """Whose certificate it shows: a node's store that of its engine."""

    @property
    def uri(self) -> str:
        said = "" if self.role is Role.TENSORSTORE else f"?role={self.role}"
        return f"{_GRPC}{self.address}{said}"


def service_of(uri: str) -> StoreService | None:
    """The service that grpc://host:port names, a mesh's store, or grpc://host:port?role=engine, a
    node's; None for another scheme. Raises InvalidArgument."""
    if not uri.startswith(_GRPC):
        return None
    address, query, said = uri.removeprefix(_GRPC).partition("?")
    role = Role.ENGINE if said == f"role={Role.ENGINE}" else Role.TENSORSTORE
    if query and role is Role.TENSORSTORE:
        raise InvalidArgument("of a store's service only role=engine is said", field="store")
    return StoreService(address, role)


def default_cache_directory() -> Path:
    """Where chunks of a remote store are kept when nobody says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "shuntserve"
