"""The ranks of a stage as threads of one process: the kernels leave each its own way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from services.engine.native.model import NativeModel, meet, packer
from services.engine.native.slices import slice_of
from services.engine.native.stage import NativeStage

T = TypeVar("T")
TIMEOUT_S = 60.0


def on_ranks(
    model: Any,
    degree: int,
    work: Callable[[NativeStage], T],
    layers: range | None = None,
    *,
    dtype: Any = "bf16",
    kv_blocks: int = 64,
    self_test: bool = False,
) -> list[T]:
    """What `work` comes to at each rank of a stage; on one, that of the stage as it is whole."""
    layers = layers or range(model.config.layer_count)
    memory_fd = os.memfd_create("ranks")
    found: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            meeting = meet(model.config, memory_fd, rank, degree) if degree > 1 else None
            native = NativeModel(model.config, dtype, packer(dtype, meeting=meeting), meeting)
            native.pack(slice_of(model.config, degree, rank).of(model.tensors, layers), layers)
            stage = native.stage(layers, self_test=self_test)
            stage.begin(kv_blocks)
            found[rank] = work(stage)
            stage.close()
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(degree)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    os.close(memory_fd)
    for result in found.values():
        if isinstance(result, Exception):
            raise result
    assert len(found) == degree, "a rank waits for others"
    return [found[rank] for rank in range(degree)]
