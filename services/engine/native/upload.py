"""Weights to a GPU: two pinned buffers take turns, one is filled while the other is sent.

A copy straight from mapped memory would be staged by the driver, page by page, and would wait for
each page to be read; so would a copy of a whole tensor that is not read yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

BUFFER_BYTES = 32 << 20
FILLERS = min(8, os.cpu_count() or 1)
"""Threads that fill a buffer: one alone is slower than the way to a GPU, by far."""
ALONE_BYTES = 1 << 20
"""Up to so many are filled by one."""


class DeviceLink(Protocol):
    """The way to one device."""

    def buffer(self, size_bytes: int) -> Tensor:
        """uint8 [size_bytes] of host memory that the device can read by itself."""
        ...

    def target(self, like: Tensor) -> Tensor:
        """Memory on the device for a tensor of this shape and type."""
        ...

    def send(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Begins to copy bytes to the device; what it returns waits until they are there."""
        ...


class CudaLink:
    """Copies on a stream of its own."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def target(self, like: Tensor) -> Tensor:
        memory = torch.empty(like.shape, dtype=like.dtype, device=self._device)
        # A formation that serves may have let go of it, and still read it in a kernel on its way.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return memory

    def send(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            arrived: torch.cuda.Event = self._stream.record_event()
        return arrived.synchronize


def upload(
    tensors: Mapping[str, Tensor], link: DeviceLink, buffer_bytes: int = BUFFER_BYTES
) -> dict[str, Tensor]:
    """The tensors on the device, of the same shapes, bit for bit; those that are stored transposed
    stay so. Returns when everything is there."""
    with ThreadPoolExecutor(FILLERS, "fill") as fillers:
        return _upload(tensors, link, buffer_bytes, fillers)


def _upload(
    tensors: Mapping[str, Tensor], link: DeviceLink, buffer_bytes: int, fillers: ThreadPoolExecutor
) -> dict[str, Tensor]:
    buffers = [link.buffer(buffer_bytes) for _ in range(2)]
    arrivals: list[Callable[[], None] | None] = [None, None]
    turn = 0
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored = tensor if tensor.is_contiguous() else tensor.t()
        target = link.target(stored)
        source_bytes, target_bytes = _bytes_of(stored), _bytes_of(target)
        for start in range(0, len(source_bytes), buffer_bytes):
            piece = source_bytes[start : start + buffer_bytes]
            if (arrived := arrivals[turn]) is not None:
                arrived()
            staged = buffers[turn][: len(piece)]
            _fill(staged, piece, fillers)
            arrivals[turn] = link.send(staged, target_bytes[start : start + len(piece)])
            turn = 1 - turn
        found[name] = target if stored is tensor else target.t()
    for arrived in arrivals:
        if arrived is not None:
            arrived()
    return found


def _fill(staged: Tensor, piece: Tensor, fillers: ThreadPoolExecutor) -> None:
    parts = FILLERS if len(piece) > ALONE_BYTES else 1
    for copied in [
        fillers.submit(target.copy_, source)
        for target, source in zip(staged.chunk(parts), piece.chunk(parts), strict=True)
    ]:
        copied.result()


def _bytes_of(tensor: Tensor) -> Tensor:
    """uint8 [bytes] over a contiguous tensor's memory."""
    return tensor.view(-1).view(torch.uint8)
