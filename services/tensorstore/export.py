"""Any slice of a stored model as one safetensors file, under the original names."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import torch

from services.common.results import discard
from services.tensorstore.cache.residence import Progress
from services.tensorstore.client import Layers, StoredModel
from services.tensorstore.places.directory import translate


def export(
    model: StoredModel,
    out: Path,
    layers: Layers,
    tp_degree: int = 1,
    rank: int = 0,
    progress: Progress | None = None,
) -> int:
    """Writes the file whole or not at all and returns its bytes; one tensor in memory at a time."""
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    with model.stage(layers, tp_degree, rank) as stage:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, tensor in stage.tensors.items():
            header[name] = {
                "dtype": model.manifest.by_name[name].dtype,
                "shape": list(tensor.shape),
                "data_offsets": [at, at + tensor.nbytes],
            }
            at += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        done = 0
        try:
            with temporary.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for tensor in stage.tensors.values():
                    flat: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
                    file.write(flat)
                    done += tensor.nbytes
                    if progress is not None:
                        progress(done, at)
            temporary.replace(out)
        except OSError as error:
            raise translate(OSError(error.errno, error.strerror, str(out))) from None
        finally:
            discard(temporary)
    return 8 + len(text) + at
