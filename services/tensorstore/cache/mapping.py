"""Files mapped read-only, one behind the other, and tensors over them.

One range of addresses holds all the chunks of a stage, each at a page of its own. It goes back to
the system with the last tensor that looks into it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence

import torch

from services.common.errors import Aborted, DataLoss, ResourceExhausted
from services.tensorstore.cache.residence import HeldFile
from services.tensorstore.format.dtypes import TORCH_NAMES
from services.tensorstore.format.slices import TensorSlice

_PROT_NONE = 0
_READ, _SHARED_FIXED = mmap.PROT_READ, mmap.MAP_SHARED | 0x10
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value
_DTYPES = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAMES.items()}

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFiles:
    """A range of addresses; raises Aborted for a file that is no longer the one that was held."""

    def __init__(self, files: Sequence[HeldFile]) -> None:
        """Files are mapped in this order."""
        page = mmap.PAGESIZE
        self.offsets: list[int] = []
        size_bytes = 0
        for _, _, file_bytes in files:
            self.offsets.append(size_bytes)
            size_bytes += -(-file_bytes // page) * page
        self.size_bytes = size_bytes
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        address = _mmap(None, size_bytes, _PROT_NONE, private, -1, 0)
        if address in (None, _FAILED):
            raise ResourceExhausted(f"no {size_bytes} bytes of addresses are left", field="memory")
        self._address = int(address)
        window = (ctypes.c_ubyte * size_bytes).from_address(self._address)
        unmap = weakref.finalize(window, _libc.munmap, self._address, size_bytes)
        unmap.atexit = False  # others may still look in at that time
        for file, offset in zip(files, self.offsets, strict=True):
            _map(file, self._address + offset)
        self._bytes = torch.frombuffer(window, dtype=torch.uint8)
        self._typed: dict[str, torch.Tensor] = {}

    def view(self, file: int, piece: TensorSlice) -> torch.Tensor:
        """A tensor over a slice of one of the files, of the original shape."""
        dtype = piece.tensor.dtype
        typed = self._typed.get(dtype)
        if typed is None:
            typed = self._typed[dtype] = self._bytes.view(_DTYPES[dtype])
        first = (self.offsets[file] + piece.start) // typed.itemsize
        shape = piece.shape
        if not shape:
            return typed[first]
        if len(shape) == 1:
            return typed.as_strided(shape, (1,), first)
        if piece.tensor.axis == 1:
            return typed.as_strided(shape, (1, shape[0]), first)
        if len(shape) == 2:
            return typed.as_strided(shape, (shape[1], 1), first)
        return typed[first : first + piece.size_bytes // typed.itemsize].view(shape)

    def release(self) -> None:
        """Drops the pages; they are read again from the files when they are touched."""
        _libc.madvise(self._address, self.size_bytes, mmap.MADV_DONTNEED)


def _map(file: HeldFile, address: int) -> None:
    path, inode, file_bytes = file
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise Aborted(f"{path[-64:]} went before it was mapped", field="chunk") from None
    except OSError as error:
        raise DataLoss(f"{path[-64:]} cannot be mapped: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if found.st_ino != inode or found.st_size != file_bytes:
            raise Aborted(f"{path[-64:]} was replaced before it was mapped", field="chunk")
        if _mmap(address, file_bytes, _READ, _SHARED_FIXED, descriptor, 0) != address:
            raise ResourceExhausted(f"{path[-64:]} cannot be mapped", field="memory")
    finally:
        os.close(descriptor)
