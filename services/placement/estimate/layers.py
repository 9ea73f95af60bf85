"""Time of one layer on one kind of device: what a calibration is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.common.errors import InvalidArgument
from services.placement.estimate.calibration import Calibration
from services.placement.estimate.catalogue import HardwareCatalogue
from services.placement.estimate.cluster import described
from services.placement.estimate.model import ModelShape
from services.placement.estimate.roofline import device, total_s


def layer_times(
    model: ModelShape,
    gpu: str,
    tp: int,
    prefill: bool,
    tokens: Sequence[int],
    context: int,
    calibration: Calibration,
    catalogue: HardwareCatalogue,
) -> list[float]:
    """Milliseconds of one layer: a prompt of `tokens`, or one token of each of `tokens` sequences
    with `context` tokens behind it."""
    if not 1 <= context <= 1 << 24:
        raise InvalidArgument(f"context must be from 1 to {1 << 24}", field="context")
    if not 1 <= tp <= 64 or not model.allows_tp(tp):
        raise InvalidArgument(
            f"TP {tp} does not suit {model.heads} heads with {model.kv_heads} KV heads",
            field="tp",
        )
    kind = described(catalogue, device_type=gpu, device_count=tp)
    rates = device(model, kind, tp, calibration, catalogue, exact_tiles=True)
    times = []
    for count in tokens:
        if prefill:
            operations = rates.prefill(1.0, count)
        else:
            operations = rates.decode(np.float64(count), float(context))
        times.append(float(total_s(operations)) * 1e3)
    return times
