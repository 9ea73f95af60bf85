"""Authorities and certificates on disk.

DIR/authority.pem, authority.key        an authority; the key for its owner alone
DIR/ROLE, DIR/engine-NODE               directories of certificates that it issued, one a holder:
  certificate.pem, key.pem, authority.pem
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from services.cli.certs.authority import Authority, Issued, Wish, key_pem, read_issued
from services.common.certificate_files import AUTHORITY, CERTIFICATE, KEY, CertificateFiles, Pem
from services.common.errors import AlreadyExists, FailedPrecondition
from services.common.private import locked, make_private, replace_file
from services.common.results import discard
from services.common.roles import Identity

AUTHORITY_KEY = "authority.key"
_OPEN, _PRIVATE = 0o644, 0o600


def create_authority(directory: Path, mesh: str, days: int, now: datetime) -> Authority:
    """A new authority in a directory that has none. Raises AlreadyExists, InvalidArgument and
    OSError."""
    authority = Authority.drawn(mesh, days, now)
    make_private(directory)
    with locked(directory):
        if any((directory / name).exists() for name in (AUTHORITY, AUTHORITY_KEY)):
            raise AlreadyExists(f"{directory} has an authority", field="directory")
        replace_file(directory / AUTHORITY_KEY, key_pem(authority.key), _PRIVATE)
        try:
            replace_file(directory / AUTHORITY, authority.pem, _OPEN)
        except OSError:
            discard(directory / AUTHORITY_KEY)  # a half would be no authority, and keep others away
            raise
    return authority


class AuthorityDirectory:
    """An authority, and what it has issued. Raises FailedPrecondition where there is none."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        try:
            self._certificates = (directory / AUTHORITY).read_bytes()
            self.authority = Authority.read(
                self._certificates, (directory / AUTHORITY_KEY).read_bytes()
            )
        except OSError as error:
            raise FailedPrecondition(
                f"{error.filename}: {error.strerror}; `shunt certs init` makes an authority",
                field="authority",
            ) from error

    def home_of(self, identity: Identity) -> Path:
        """Where a holder's certificates are, where nobody wants them elsewhere."""
        name = f"{identity.role}-{identity.node_id}" if identity.node_id else f"{identity.role}"
        return self.path / name

    def issue(self, wish: Wish, now: datetime) -> Pem:
        """Raises InvalidArgument and FailedPrecondition. Whoever is issued it trusts all
        authorities that the directory names."""
        certificate, key = self.authority.issue(wish, now)
        return Pem(certificate, key, self._certificates)

    def has_made(self, pem: Pem) -> bool:
        """Whether it would have been issued by this authority as it is now."""
        same = pem.authority == self._certificates
        return same and self.authority.has_signed(pem.certificate)


def write(pem: Pem, directory: Path) -> None:
    """Replaces a directory's certificates; who reads meanwhile has the ones before. Raises
    OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):  # two at once would leave one's key beside the other's certificate
        _write(pem, directory)


def read(directory: Path) -> Pem:
    """What a directory has. Raises FailedPrecondition for files that cannot be used together."""
    try:
        paths = (directory / name for name in (CERTIFICATE, KEY, AUTHORITY))
        with locked(directory, fcntl.LOCK_SH):
            return CertificateFiles(*paths).newest()
    except OSError as error:
        raise FailedPrecondition(f"{directory}: {error.strerror or error}") from error


def read_issued_in(directory: Path) -> Issued:
    """What the certificate there says, whether its key is there or not. Raises FailedPrecondition
    and InvalidArgument."""
    try:
        return read_issued((directory / CERTIFICATE).read_bytes())
    except OSError as error:
        raise FailedPrecondition(f"{directory}: {error.strerror}") from error


def holders(directory: Path) -> Sequence[Path]:
    """Directories of certificates: this one, or those in it."""
    if (directory / CERTIFICATE).is_file():
        return [directory]
    return sorted(path.parent for path in directory.glob(f"*/{CERTIFICATE}"))


def _write(pem: Pem, directory: Path) -> None:
    replace_file(directory / AUTHORITY, pem.authority, _OPEN)
    replace_file(directory / KEY, pem.key, _PRIVATE)
    replace_file(directory / CERTIFICATE, pem.certificate, _OPEN)
