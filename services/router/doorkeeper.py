"""Who asks, at both doors: by the key that he shows, where the router has keys.

The file of keys is looked at again while it is used: a key that is made or revoked counts within a
second, at every router that has the file, and nothing restarts. A file that cannot be read, or is
none, leaves the keys as they were: nobody gets in by damaging it, and nobody is shut out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.common.api_keys import KeyFile, Keys
from services.common.errors import InvalidArgument, Unauthenticated
from services.common.tenants import NOBODY, Tenant
from services.router import metrics

_log = logging.getLogger(__name__)
LOOK_INTERVAL_S = 1.0
"""The file is looked at no more often than this."""
_SCHEME = "bearer"
_Stamp = tuple[int, int, int, int]


class InvalidApiKey(Unauthenticated):
    """No key, or none of ours. What was shown is never repeated."""


class Doorkeeper:
    """Keys of one router; without a file everybody is welcome, and is nobody."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises InvalidArgument for a file that cannot be used."""
        self._path = path
        self._clock = clock
        self._looked_s = clock()
        self._stamp: _Stamp | None = None
        self._keys: Keys | None = None
        if path is not None:
            self._stamp = _stamp_of(path)
            try:
                self._keys = _read(path)
            except OSError as error:
                raise InvalidArgument(f"{path}: {error.strerror}", field="keys") from error

    @property
    def asks(self) -> bool:
        """Nobody comes in without a key."""
        return self._path is not None

    def caller(self, authorizations: Sequence[str]) -> Tenant:
        """Whose request it is, by all its Authorization headers. Raises InvalidApiKey."""
        keys = self._newest()
        if keys is None:
            return NOBODY
        scheme, _, key = authorizations[0].partition(" ") if authorizations else ("", "", "")
        if scheme.lower() != _SCHEME or len(authorizations) > 1:
            raise InvalidApiKey("this needs an API key: send Authorization: Bearer KEY, once")
        tenant = keys.tenant_of(key.strip(" "))
        if tenant is None:
            raise InvalidApiKey("the API key is none that is known here")
        return tenant

    def newest(self, tenant: Tenant) -> Tenant:
        """What the tenant may do by now; as it was, where it is gone."""
        keys = self._newest()
        return tenant if keys is None else keys.tenants.get(tenant.name, tenant)

    def _newest(self) -> Keys | None:
        if self._path is not None:
            now_s = self._clock()
            if now_s - self._looked_s >= LOOK_INTERVAL_S:
                self._looked_s = now_s
                self._look(self._path)
        return self._keys

    def _look(self, path: Path) -> None:
        stamp = _stamp_of(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # whatever stands there is read, and complained of, once
        try:
            self._keys = _read(path)
        except OSError as error:
            self._keep(error.strerror or str(error))
        except InvalidArgument as error:
            self._keep(error.message)
        else:
            metrics.KEYS_KEPT.set(0)
            _log.info("keys were read again", extra={"tenants": len(self._keys.tenants)})

    def _keep(self, reason: str) -> None:
        metrics.KEYS_KEPT.set(1)
        _log.error("keys stay as they were", extra={"file": str(self._path), "reason": reason})


def _stamp_of(path: Path) -> _Stamp | None:
    """None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _read(path: Path) -> Keys:
    return Keys(KeyFile.read(path.read_bytes()))
