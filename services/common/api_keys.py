"""API keys: what one looks like, how a file holds them, and who shows which.

A key reads shunt-ID-SECRET: the id names it to people and in the file, the secret is 32 random
bytes. A file has its own salt, and of each key HMAC-SHA256(salt, key): with so much chance in a
key a slow hash would add nothing, and every request pays for it. Who reads the file can ask for
nothing with it.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from services.common.errors import InvalidArgument
from services.common.generation import PriorityClass
from services.common.tenants import Limits, Tenant
from services.common.wire import MAX_TENANT_CHARS, MAX_TENANT_WEIGHT
from services.common.yaml_file import Row

VARIABLE = "SHUNT_API_KEY"
"""The key that a command of this process shows to routers."""
ADVICE = f"a command shows the one in {VARIABLE}"
"""For whoever's command was refused for its key."""
MAX_FILE_BYTES = 8 << 20
MAX_KEYS = 10_000
MAX_MODELS = 64
MAX_MODEL_CHARS = 256
MOST = (1 << 53) - 1
"""Of any limit: what every reader of JSON takes for a whole number."""
_SHAPE = re.compile(r"shunt-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_DIGEST = r"^[0-9a-f]{64}$"


class TenantRow(Row):
    """What a tenant may do. A limit of 0, or none, does not bind."""

    priority: PriorityClass = Field(default=PriorityClass.STANDARD, alias="class")
    weight: int = Field(default=1, ge=1, le=MAX_TENANT_WEIGHT)
    requests_per_minute: int = Field(default=0, ge=0, le=MOST)
    tokens_per_minute: int = Field(default=0, ge=0, le=MOST)
    streams: int = Field(default=0, ge=0, le=MOST)
    models: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=MAX_MODELS)
    """None: every model."""

    @field_validator("models")
    @classmethod
    def _named(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(not 1 <= len(name) <= MAX_MODEL_CHARS for name in models or ()):
            raise ValueError(f"a model's name has 1 to {MAX_MODEL_CHARS} characters")
        return models


class KeyRow(Row):
    """A key, as far as the file knows it."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    tenant: str
    digest: str = Field(pattern=_DIGEST)
    created_unix_s: int = Field(default=0, ge=0)


class KeyFile(Row):
    """A file of keys, and of the tenants that hold them."""

    version: Literal[1]
    salt: str = Field(pattern=_DIGEST)
    tenants: Mapping[str, TenantRow]
    keys: tuple[KeyRow, ...] = Field(max_length=MAX_KEYS)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in self.tenants:
            if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{MAX_TENANT_CHARS}}}", name):
                raise ValueError(
                    f"a tenant's name has 1 to {MAX_TENANT_CHARS} letters, digits, '-', '_', '.'"
                )
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one id")
        if any(key.tenant not in self.tenants for key in self.keys):
            raise ValueError("a key is of a tenant that is not there")
        return self

    @classmethod
    def empty(cls) -> KeyFile:
        """One with a salt of its own, and no keys."""
        return cls(version=1, salt=secrets.token_hex(32), tenants={}, keys=())

    @classmethod
    def read(cls, data: bytes) -> KeyFile:
        """Raises InvalidArgument, naming place and fault, and nothing of what stands there."""
        if len(data) > MAX_FILE_BYTES:
            raise InvalidArgument(f"it has over {MAX_FILE_BYTES} bytes", field="keys")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            place = ".".join(map(str, fault["loc"])) or "keys"
            raise InvalidArgument(f"{place}: {fault['msg']}", field=place) from None

    def written(self) -> bytes:
        """As `read` takes it."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True).encode() + b"\n"

    def digest_of(self, key: str) -> bytes:
        """What the file has of a key."""
        return hmac.digest(bytes.fromhex(self.salt), key.encode(), "sha256")


def draw() -> tuple[str, str]:
    """A new key, and its id in front."""
    key_id = secrets.token_hex(6)
    return key_id, f"shunt-{key_id}-{secrets.token_urlsafe(32)}"


class Keys:
    """Who shows which key, by one file."""

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        tenants = {name: _tenant(file, name, row) for name, row in file.tenants.items()}
        self.tenants: Mapping[str, Tenant] = tenants
        """By name."""
        self._by_id = {
            key.id: (bytes.fromhex(key.digest), tenants[key.tenant]) for key in file.keys
        }
        self._nobodys = secrets.token_bytes(32)

    def tenant_of(self, key: str) -> Tenant | None:
        """Whose key it is; None for one that is nobody's. Every answer takes one hash and one
        comparison of equal length."""
        shape = _SHAPE.fullmatch(key)
        right, tenant = self._by_id.get(shape[1] if shape else "", (self._nobodys, None))
        shown = self._file.digest_of(key if shape else "")
        return tenant if hmac.compare_digest(shown, right) else None


def _tenant(file: KeyFile, name: str, row: TenantRow) -> Tenant:
    return Tenant(
        name,
        row.priority,
        row.weight,
        Limits(row.requests_per_minute or None, row.tokens_per_minute or None, row.streams or None),
        None if row.models is None else frozenset(row.models),
        hmac.digest(bytes.fromhex(file.salt), b"tenant:" + name.encode(), "sha256").hex(),
    )


def own() -> str:
    """The key that this process shows to routers; empty: it has none."""
    return os.environ.get(VARIABLE, "").strip()


def metadata() -> tuple[tuple[str, str], ...]:
    """What a call of gRPC to a router shows."""
    return tuple(("authorization", value) for value in headers().values())


def headers() -> dict[str, str]:
    """What a request over HTTP to a router shows."""
    key = own()
    return {"Authorization": f"Bearer {key}"} if key else {}
