"""Files of a checkpoint, which somebody else wrote: opened with care, read by ranges."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.tensorstore.places.directory import translate

_STEP_BYTES = 64 << 20
_LFS_POINTER = b"version https://git-lfs"


def open_file(path: Path, within: Path | None = None) -> int:
    """A descriptor of a plain file. Raises NotFound or InvalidArgument; of the latter kind is also
    a link that leads out of the directory `within`, if one is given, and a file that only says
    where Git LFS has it."""
    try:
        if within is not None:
            path = path.resolve(strict=True)
            if not path.is_relative_to(within.resolve()):
                raise InvalidArgument(f"{path.name} lies elsewhere", field="source")
        follow = 0 if within is None else os.O_NOFOLLOW
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
    except FileNotFoundError:
        raise NotFound(f"{path.name} is missing", field="source") from None
    except (OSError, RuntimeError, ValueError) as error:  # refused, a loop of links, a NUL
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidArgument(f"{path.name}: {said}", field="source") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"{path.name} is no file", field="source")
    if _begins_with(descriptor, _LFS_POINTER):
        os.close(descriptor)
        raise InvalidArgument(
            f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its"
            " directory, or download the file",
            field="source",
        )
    return descriptor


def _begins_with(descriptor: int, prefix: bytes) -> bool:
    try:
        return os.pread(descriptor, len(prefix), 0) == prefix
    except OSError:
        return False  # whoever reads it will say so


def read_file(path: Path, limit_bytes: int, within: Path | None = None) -> bytes:
    """A small file's bytes; raises InvalidArgument for one larger than that."""
    descriptor = open_file(path, within)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit_bytes:
            raise InvalidArgument(f"{path.name} has more than {limit_bytes} bytes", field="source")
        data = bytearray(size)
        read_exactly(descriptor, 0, memoryview(data))
        return bytes(data)
    finally:
        os.close(descriptor)


def read_exactly(descriptor: int, start: int, into: memoryview) -> None:
    """Fills the buffer from the file; raises DataLoss if the file has become shorter."""
    done = 0
    while done < len(into):
        try:
            count = os.preadv(descriptor, [into[done : done + _STEP_BYTES]], start + done)
        except OSError as error:
            raise translate(error) from None
        if count == 0:
            raise DataLoss("a source file became shorter while it was read")
        done += count
