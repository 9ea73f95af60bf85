"""Where engines map weights from: files of this node, each tile verified once, on entry.

A residence is a directory of chunk files and, for each manifest, a log of which tiles were found
good. A log line holds for one state of one file (inode, size, time of change) until the machine
boots again: whatever is written to the file later puts it in doubt, and so does a power loss, that
may have kept the line and lost the bytes. A directory store on the same host is its own residence;
anything else fills one from elsewhere.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from services.common.errors import DataLoss, NotFound
from services.tensorstore.format.manifest import Chunk, Manifest
from services.tensorstore.format.slices import Selection
from services.tensorstore.format.tile_check import TileCheck
from services.tensorstore.places.directory import read_pieces, translate

VERIFY_THREADS = 4
TICK_LIMIT_MS = 50
CLOCK_OF_FILES = 5  # CLOCK_REALTIME_COARSE, which the time module does not name
Progress = Callable[[int, int], None]


class HeldFile(NamedTuple):
    """A file with verified tiles. The path may lead to another file once nobody holds it, so
    whoever opens it compares the inode."""

    path: str
    inode: int
    size_bytes: int

    def __fspath__(self) -> str:
        return self.path


class Residence(Protocol):
    """Files that engines may map."""

    def hold(
        self, selection: Selection, progress: Progress | None
    ) -> AbstractContextManager[list[HeldFile]]:
        """Makes the tiles present and verified; the file of each of its chunks, in order.

        The files stay while the context lasts, and their bytes as long as they are mapped.
        Progress counts the bytes of the slice, up to all of them, whatever was there before.
        Raises DataLoss, naming the chunk, for bytes that are not what the manifest says, and
        Aborted, at the end, if the files may have gone meanwhile.
        """


class LocalResidence:
    """A directory store's own objects, verified in place."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[HeldFile]]:
        log = VerifiedLog(self._root / "verified" / selection.digest)
        held: list[HeldFile] = []
        doubtful: list[tuple[str, Chunk, int]] = []
        states: dict[int, tuple[FileState, int]] = {}
        for wanted in selection.ranges:
            chunk = selection.manifest.chunks[wanted.chunk]
            path = f"{self._root}/objects/{chunk.digest[:2]}/{chunk.digest}"
            state = state_of(path, chunk)
            good = log.good(wanted.chunk, state)
            mask = mask_of(wanted.tiles)
            if mask & ~good:
                states[wanted.chunk] = (state, good | mask)
                doubtful += [(path, chunk, tile) for tile in wanted.tiles if not good >> tile & 1]
            held.append(HeldFile(path, state[0], state[1]))
        if doubtful:
            verify_tiles(doubtful, selection.size_bytes, progress)
            log.record(states)
        elif progress is not None:
            progress(selection.size_bytes, selection.size_bytes)
        yield held


FileState = tuple[int, int, int]  # inode, bytes, time of change in ns


def state_of(path: str, chunk: Chunk) -> FileState:
    """What identifies a file's contents so long as nobody writes to it; raises DataLoss."""
    try:
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise NotFound(f"chunk {chunk.digest} is missing", field="chunk") from None
    except OSError as error:
        raise translate(error) from None
    if stat.st_size != chunk.size_bytes:
        raise DataLoss(
            f"chunk {chunk.digest} has {stat.st_size} bytes instead of {chunk.size_bytes}",
            field="chunk",
        )
    return stat.st_ino, stat.st_size, stat.st_ctime_ns


def state_of_open(descriptor: int) -> FileState:
    """The same of an open file."""
    stat = os.fstat(descriptor)
    return stat.st_ino, stat.st_size, stat.st_ctime_ns


def mask_of(tiles: Sequence[int]) -> int:
    """A bit for each tile."""
    if tiles[-1] - tiles[0] + 1 == len(tiles):
        return (1 << tiles[-1] + 1) - (1 << tiles[0])
    mask = 0
    for tile in tiles:
        mask |= 1 << tile
    return mask


class VerifiedLog:
    """Lines `boot chunk inode bytes changed_ns tiles`, the chunk by its place in the manifest;
    appended whole, so that a torn last line can be told and ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._good: dict[tuple[int, FileState], int] = {}
        self._read_bytes = 0
        self.refresh()

    def good(self, chunk: int, state: FileState) -> int:
        """The tiles found good in this state of the file, a bit each."""
        return self._good.get((chunk, state), 0)

    def refresh(self) -> None:
        """Reads what others have recorded meanwhile."""
        boot = _boot()
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    if file.seek(0, os.SEEK_END) < self._read_bytes:
                        self._read_bytes = 0  # begun anew by somebody
                    file.seek(self._read_bytes)
                    lines = file.read().split(b"\n")
            except OSError:
                return
            for line in lines[:-1]:
                self._read_bytes += len(line) + 1
                try:
                    at, chunk, inode, size, changed, tiles = line.split(b" ")
                    key = (int(chunk), (int(inode), int(size), int(changed)))
                    if at == boot:
                        self._good[key] = self._good.get(key, 0) | int(tiles, 16)
                except ValueError:
                    continue

    def record(self, states: dict[int, tuple[FileState, int]]) -> None:
        """Remembers tiles; a residence that cannot be written to is verified at every load."""
        if not _settled(max(state[2] for state, _ in states.values())):
            return
        lines = []
        for chunk, (state, mask) in states.items():
            text = f" {chunk} {state[0]} {state[1]} {state[2]} {mask:x}\n"
            lines.append(_boot() + text.encode("ascii"))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            return
        try:
            os.write(descriptor, b"".join(lines))
        except OSError:
            return
        finally:
            os.close(descriptor)


def _settled(changed_ns: int) -> bool:
    """Waits until a later change would show. Times of change come in ticks of some milliseconds:
    in the same one a file could be written to, or even give its inode to another, unnoticed."""
    for _ in range(TICK_LIMIT_MS):
        if _tick_ns() > changed_ns:
            return True
        time.sleep(0.001)
    return False  # a time of change that lies in the future


def _tick_ns() -> int:
    return time.clock_gettime_ns(CLOCK_OF_FILES)


@functools.cache
def _boot() -> bytes:
    """Which run of the machine this is; where it does not say, every process is one."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        text = uuid.uuid4().hex
    return text.strip().replace("-", "").encode("ascii")


def verified_tiles(root: Path, digest: str, manifest: Manifest) -> dict[int, tuple[str, int]]:
    """Path and tiles, a bit each, of the chunks that a residence believes to have."""
    log, found = VerifiedLog(root / "verified" / digest), {}
    for index, chunk in enumerate(manifest.chunks):
        path = f"{root}/objects/{chunk.digest[:2]}/{chunk.digest}"
        with suppress(NotFound, DataLoss):
            good = log.good(index, state_of(path, chunk))
            if good:
                found[index] = (path, good)
    return found


def verify_tiles(
    tiles: Sequence[tuple[str, Chunk, int]], total_bytes: int, progress: Progress | None = None
) -> None:
    """Reads tiles and compares their digests; raises DataLoss naming the first damaged chunk.

    Progress counts up to the total, of which the rest needs no reading.
    """
    done_bytes = total_bytes
    done_bytes -= sum(chunk.tile_bytes(t)[1] - chunk.tile_bytes(t)[0] for _, chunk, t in tiles)
    with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify") as pool:
        for size in pool.map(lambda item: check_tile(*item), tiles):
            done_bytes += size
            if progress is not None:
                progress(done_bytes, total_bytes)


def check_tile(path: str, chunk: Chunk, tile: int) -> int:
    """Verifies one tile of a file and returns its bytes."""
    start, stop = chunk.tile_bytes(tile)
    check = TileCheck(chunk, tile)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise translate(error) from None
    try:
        for piece in read_pieces(descriptor, chunk.digest, start, stop):
            check.update(piece)
    finally:
        os.close(descriptor)
    return stop - start
