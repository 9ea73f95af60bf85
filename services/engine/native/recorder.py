"""Computations on a GPU that are started in one go: they have hundreds of steps of microseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

_one_at_a_time = threading.Lock()
_streams: dict[torch.device, torch.cuda.Stream] = {}
"""Each device's own: cuBLAS keeps memory for every stream that it has seen."""


class Recorder:
    """Records over memory that all its recordings share: they run in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._first: torch.cuda.CUDAGraph | None = None
        """The memory goes with the last recording, and cannot be had again."""

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The same computation over the same tensors, with what is in them when it is called; a
        result is there until the next call of any. Where there is nothing to record, itself."""
        if self._device.type != "cuda":
            return compute
        compute()  # what is loaded or sized at its first use cannot be recorded
        graph, now = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        with _one_at_a_time:
            stream = _stream(self._device)
            stream.wait_stream(now)
            with torch.cuda.stream(stream):
                # Other threads may compute, or load a stage, meanwhile.
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    result = compute()
                finally:
                    graph.capture_end()
            now.wait_stream(stream)
        self._first = self._first or graph

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]
