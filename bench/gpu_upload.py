"""How fast weights reach a GPU, and a stage of a tensor store on a local disk with them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.gpu_model import MemoryCheckpoint
from bench.tensorstore_timing import drop
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import StageSpec
from services.engine.native.loader import NativeLoader, NativeOptions
from services.engine.native.upload import CudaLink, upload
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend

GIGA = 1e9
ROUNDS = 3


def _rate(size_bytes: int, call: Callable[[], Any]) -> float:
    """GB/s of the fastest of some calls."""
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        kept = call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
        del kept
    return round(size_bytes / min(found) / GIGA, 2)


def uploads(tensors: Mapping[str, Tensor], device: str) -> dict[str, Any]:
    """GB/s from memory of the host: as the engine sends it, and as it could be sent."""
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    pinned = {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def all_of(held: Mapping[str, Tensor]) -> list[Tensor]:
        return [tensor.to(device, non_blocking=True) for tensor in held.values()]

    return {
        "bytes": size_bytes,
        "engine_gb_per_s": _rate(size_bytes, lambda: upload(tensors, CudaLink(device))),
        "pageable_gb_per_s": _rate(size_bytes, lambda: all_of(tensors)),
        "pinned_gb_per_s": _rate(size_bytes, lambda: all_of(pinned)),
    }


def loads(
    raw: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: Any, device: str
) -> dict[str, Any]:
    """A stage of all layers, from a store on the disk of temporary files: read, verified,
    uploaded, tried and self-tested."""
    spec = StageSpec(LayerRange(0, raw["num_hidden_layers"]))
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        began = time.perf_counter()
        backend = DirectoryBackend(Path(folder) / "store")
        digest = import_checkpoint(MemoryCheckpoint(raw, tensors), backend, "bench").digest
        stored_s = time.perf_counter() - began
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())

        def load() -> float:
            loader = NativeLoader(NativeOptions(str(backend.root), dtype, device, 1, None))
            torch.cuda.synchronize()
            began = time.perf_counter()
            loader.load(ModelRef("bench", digest), spec, lambda done, total: None).close()
            torch.cuda.synchronize()
            return time.perf_counter() - began

        drop(sorted(Path(folder).glob("store/objects/??/*")))
        cold_s = load()
        warm_s = min(load() for _ in range(2))
    return {
        "bytes": size_bytes,
        "import_s": round(stored_s, 2),
        "cold_s": round(cold_s, 2),
        "cold_gb_per_s": round(size_bytes / cold_s / GIGA, 2),
        "warm_s": round(warm_s, 2),
        "warm_gb_per_s": round(size_bytes / warm_s / GIGA, 2),
    }
