"""Where files are kept: the seam between the router and a directory or S3.

Methods block; callers have threads for that. What is written under a name is there whole or not at
all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from services.common.errors import InvalidArgument


class Writer(Protocol):
    """Bytes on their way into a place; not for two threads at once."""

    def write(self, data: bytes) -> None:
        """More of them. Raises ResourceExhausted for a full place, Unavailable."""
        ...

    def commit(self) -> None:
        """They are all: under their name from now on, durably, instead of what was there."""
        ...

    def abort(self) -> None:
        """They are not wanted; nothing after a commit."""
        ...


class Place(Protocol):
    """Named bytes. Names are paths of plain words."""

    def writer(self, name: str) -> Writer:
        """For what is to have this name. Raises Unavailable, ResourceExhausted."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes under a name; None without it. Raises Unavailable."""
        ...

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop); fewer at the end. Raises NotFound, Unavailable."""
        ...

    def delete(self, name: str) -> None:
        """Nothing has this name any more."""
        ...

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        """What lies in a folder and below it, and since when, in seconds since 1970."""
        ...

    def sweep(self, before_s: float) -> None:
        """Removes what was begun before this time and never committed."""
        ...


def open_place(uri: str) -> Place:
    """A path, file:// or s3://bucket/prefix. Raises InvalidArgument for anything else."""
    from services.router.files.directory import DirectoryPlace

    parts = urlsplit(uri)
    if parts.scheme == "":
        return DirectoryPlace(Path(uri))
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return DirectoryPlace(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from services.router.files.s3 import S3Place  # boto3 is heavy, and not everywhere

        return S3Place(uri)
    raise InvalidArgument("files are kept in a path, file://… or s3://bucket/prefix", field="files")
