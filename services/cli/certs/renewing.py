"""Keeps certificates young: what is due is replaced by a newer one from where such come from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from services.cli.certs.authority import read_issued
from services.cli.certs.directory import AuthorityDirectory, holders, read, read_issued_in, write
from services.common.certificate_files import Pem
from services.common.errors import FailedPrecondition, ShuntError

_log = logging.getLogger(__name__)
PAUSE_S = 30.0
"""Between two looks at all that may be due."""


class Source(Protocol):
    """Where newer certificates come from."""

    def newer(self, directory: Path, now: datetime) -> Pem | None:
        """What the directory should have in place of what it has, None while that will do. Raises
        ShuntError and OSError."""


@dataclass(frozen=True)
class FromAuthority:
    """Signed anew, for the same holder, by the authority whose key is at hand."""

    path: Path

    def newer(self, directory: Path, now: datetime) -> Pem | None:
        issued, signer = read_issued_in(directory), AuthorityDirectory(self.path)
        held = _held(directory)
        if held is not None and signer.has_made(held) and not issued.is_due(now):
            return None
        return signer.issue(issued.wish, now)


@dataclass(frozen=True)
class FromDirectory:
    """As somebody else puts them into another directory: a mounted secret, or what a machine
    fetches in its own role."""

    path: Path

    def newer(self, directory: Path, now: datetime) -> Pem | None:
        found = read(self.path)
        theirs = read_issued(found.certificate)
        if theirs.ends <= now:
            raise FailedPrecondition(f"{self.path}: its certificate ended at {theirs.ends}")
        held = _held(directory)
        if held is None:
            return found
        return None if held == found or read_issued(held.certificate).ends > theirs.ends else found


def renew(source: Source, directories: Sequence[Path], now: datetime) -> tuple[int, list[str]]:
    """Replaces what is due. How many were, and what could not be done, a line each."""
    renewed, faults = 0, list[str]()
    for directory in directories:
        try:
            newer = source.newer(directory, now)
            if newer is not None:
                write(newer, directory)
                renewed += 1
        except ShuntError as error:
            faults.append(f"{directory}: {error.message}")
        except OSError as error:
            faults.append(f"{directory}: {error.strerror}")
    return renewed, faults


def keep(source: Source, directory: Path, now: datetime) -> None:
    """`renew` for what is in a directory, told to the log."""
    renewed, faults = renew(source, holders(directory), now)
    if renewed:
        _log.info("certificates renewed", extra={"count": renewed})
    for fault in faults:
        _log.warning("a certificate is not renewed", extra={"reason": fault})


def _held(directory: Path) -> Pem | None:
    """What the directory has, None where it cannot be used together."""
    try:
        return read(directory)
    except FailedPrecondition:
        return None
