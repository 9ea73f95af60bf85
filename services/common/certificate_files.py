"""A certificate's files, looked at again while they are used: whoever renews them restarts nobody.

Importable without the kit's settings.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_log = logging.getLogger(__name__)
LOOK_INTERVAL_S = 1.0
"""Files are looked at no more often than this."""
CERTIFICATE, KEY, AUTHORITY = "certificate.pem", "key.pem", "authority.pem"
"""What they are called in a directory of certificates."""
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pem:
    """What stands in the three files; certificate and key are of one pair."""

    certificate: bytes
    key: bytes
    authority: bytes


class CertificateFiles:
    """The newest of them that can be used; safe to ask from several threads."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        """Raises OSError, of which SSLError is one, for files that cannot be used together."""
        self._paths = (certificate, key, authority)
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._refused: _Stamp = ()
        self._pem = self._read()
        self._looked_s = time.monotonic()

    def newest(self) -> Pem:
        """The same object for as long as nothing has changed. A pair of which only one half is
        there yet changes nothing."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s >= LOOK_INTERVAL_S:
                self._looked_s = now_s
                self._look()
            return self._pem

    def _look(self) -> None:
        stamp: _Stamp = ()
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return
            found = self._read()
        except OSError as error:
            if stamp != self._refused:
                self._refused = stamp
                reason = error.strerror or str(error)
                _log.info("certificates stay as they are", extra={"reason": reason})
            return
        self._stamp, self._refused = stamp, ()
        if found != self._pem:
            self._pem = found
            _log.info("certificates were renewed", extra={"file": str(self._paths[0])})

    def _stamp_now(self) -> _Stamp:
        found = [path.stat() for path in self._paths]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in found)

    def _read(self) -> Pem:
        """Raises OSError, too, when they were replaced meanwhile."""
        before = self._bytes()
        certificate, key, authority = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
        if self._bytes() != before:
            raise OSError("they are being replaced")
        return before

    def _bytes(self) -> Pem:
        certificate, key, authority = (path.read_bytes() for path in self._paths)
        return Pem(certificate, key, authority)


@lru_cache(maxsize=64)
def files_at(certificate: Path, key: Path, authority: Path) -> CertificateFiles:
    """One for each set of files of a process. Raises OSError like its constructor."""
    return CertificateFiles(certificate, key, authority)
