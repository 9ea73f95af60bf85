"""Files of API keys, as operators change them: whole, one change after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from services.common import api_keys
from services.common.api_keys import KeyFile, KeyRow, TenantRow
from services.common.errors import InvalidArgument, NotFound
from services.common.private import locked, replace_file

Checked = TypeVar("Checked", KeyFile, TenantRow)
FILE_VARIABLE = "SHUNT_ROUTER_KEYS"
PRIVATE = 0o600


def read(file: Path) -> KeyFile:
    """Raises InvalidArgument for a file that is none of keys, and OSError."""
    return KeyFile.read(file.read_bytes())


def add_key(file: Path, tenant: str, said: Mapping[str, Any]) -> tuple[str, str]:
    """A new key of a tenant and its id in front; the file is made where there is none. `said`, by
    the names that the file has, counts for the tenant from now on; what is not said stays. Raises
    InvalidArgument, naming what is wrong, and OSError."""
    key_id, key = api_keys.draw()

    def with_key(held: KeyFile) -> KeyFile:
        before = held.tenants.get(tenant, TenantRow())
        row = _checked(TenantRow, {**before.model_dump(by_alias=True), **said})
        digest, now_s = held.digest_of(key).hex(), int(time.time())
        made = KeyRow(id=key_id, tenant=tenant, digest=digest, created_unix_s=now_s)
        return _with(held, {**held.tenants, tenant: row}, (*held.keys, made))

    file.parent.mkdir(parents=True, exist_ok=True)
    _change(file, with_key, make=True)
    return key_id, key


def first_key(file: Path, tenant: str, key_file: Path) -> bool:
    """A file of one key, which is put into a file of its own for its owner alone; whether it was
    made: a file that is there stays. Raises InvalidArgument and OSError."""
    if file.exists():
        return False
    _, key = add_key(file, tenant, {})
    replace_file(key_file, key.encode() + b"\n", PRIVATE)
    return True


def revoke_key(file: Path, key_id: str) -> None:
    """Raises NotFound, InvalidArgument and OSError."""

    def without(held: KeyFile) -> KeyFile:
        left = tuple(key for key in held.keys if key.id != key_id)
        if len(left) == len(held.keys):
            raise NotFound(f"{file} has no key {key_id[:64]}", field="id")
        return _with(held, held.tenants, left)

    _change(file, without, make=False)


def _change(file: Path, change: Callable[[KeyFile], KeyFile], *, make: bool) -> None:
    with locked(file.parent):
        try:
            held = read(file)
        except FileNotFoundError:
            if not make:
                raise
            held = KeyFile.empty()
        replace_file(file, change(held).written(), PRIVATE)


def _with(held: KeyFile, tenants: Mapping[str, TenantRow], keys: tuple[KeyRow, ...]) -> KeyFile:
    return _checked(KeyFile, {"version": 1, "salt": held.salt, "tenants": tenants, "keys": keys})


def _checked(kind: type[Checked], values: Mapping[str, Any]) -> Checked:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else "tenant"
        raise InvalidArgument(fault["msg"].removeprefix("Value error, "), field=field) from None
