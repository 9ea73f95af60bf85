"""What a node remembers of a store beside the chunks: names, manifests and the files with them.

Objects are named by their digest, so one that was kept is as good as the store's. A name may point
elsewhere by now: the store is asked first, and what it said last counts only while it is away.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from services.common.errors import DeadlineExceeded, ShuntError, Unavailable
from services.tensorstore.format.manifest import MANIFEST_LIMIT_BYTES
from services.tensorstore.format.names import check_digest, check_model_name
from services.tensorstore.places.backend import PIECE_BYTES, ObjectReader, Pieces, digest_of
from services.tensorstore.places.directory import pointer_digest

T = TypeVar("T")

KEPT_OBJECTS = 256
PATIENCE_S = 3.0
ASKED_AT_ONCE = 4


class KeptReader:
    """A reader that outlives its store; a directory that cannot be written to only forgets."""

    def __init__(self, store: ObjectReader, root: Path, patience_s: float = PATIENCE_S) -> None:
        """Where a name is known, the store is given this long to answer."""
        self._store = store
        self._objects = root / "kept"
        self._names = root / "names"
        self._patience_s = patience_s
        self._asking = ThreadPoolExecutor(ASKED_AT_ONCE, "ask")
        self._overdue: set[Future[Any]] = set()

    def size(self, digest: str) -> int | None:
        data = self.kept(digest)
        return self._store.size(digest) if data is None else len(data)

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        """Keeps what turns out to be a whole object."""
        data = self.kept(digest)
        if data is not None and stop <= len(data):
            for at in range(start, stop, PIECE_BYTES):
                yield memoryview(bytearray(data[at : min(at + PIECE_BYTES, stop)]))
            return
        read = bytearray() if start == 0 and stop <= MANIFEST_LIMIT_BYTES else None
        with closing(self._store.pieces(digest, start, stop)) as pieces:
            for piece in pieces:
                if read is not None:
                    read += piece
                yield piece
        if read is not None and digest_of(read) == digest:
            self._keep(self._objects / digest, read)

    def resolve(self, name: str) -> str | None:
        known = self._names / check_model_name(name)

        def ask() -> str | None:
            found = self._store.resolve(name)
            if found is None:
                with suppress(OSError):
                    known.unlink(missing_ok=True)
            elif found != _pointer(known):
                self._keep(known, found.encode("ascii"))
            return found

        return self._or_last(ask, _pointer(known))

    def names(self) -> list[str]:
        try:
            known = sorted(path.name for path in self._names.iterdir())
        except OSError:
            known = []
        return self._or_last(self._store.names, known or None) or []

    def _or_last(self, ask: Callable[[], T | None], last: T | None) -> T | None:
        """The store's answer, or while it is away its last one."""
        if last is None:
            return ask()
        if len(self._overdue) >= ASKED_AT_ONCE:  # the store owes enough answers already
            return last
        asked = self._asking.submit(ask)
        try:
            return asked.result(self._patience_s)
        except TimeoutError:
            if not asked.cancel():
                self._overdue.add(asked)
                asked.add_done_callback(self._overdue.discard)
            return last
        except (Unavailable, DeadlineExceeded):
            return last

    def kept(self, digest: str) -> bytes | None:
        """The bytes of an object that is here."""
        path = self._objects / check_digest(digest)
        try:
            data = path.read_bytes()
            if digest_of(data) == digest:
                return data
            path.unlink()
        except OSError:
            pass
        return None

    def _keep(self, path: Path, data: bytes | bytearray) -> None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.parent.parent / "tmp" / uuid.uuid4().hex
            beside.parent.mkdir(exist_ok=True)
            try:
                beside.write_bytes(data)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
            held = sorted(path.parent.iterdir(), key=lambda other: other.stat().st_mtime_ns)
            for oldest in held[:-KEPT_OBJECTS]:
                oldest.unlink(missing_ok=True)


def _pointer(path: Path) -> str | None:
    try:
        return pointer_digest(path.name, path.read_bytes())
    except (OSError, ShuntError):
        return None
