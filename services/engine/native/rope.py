"""Rotary embedding as one table, equal at every stage."""

from __future__ import annotations

import math

import torch

from services.model.config import Llama3Scaling, ModelConfig


def _scaled(frequency: float, scaling: Llama3Scaling) -> float:
    wavelength = 2 * math.pi / frequency
    low = scaling.original_context_length / scaling.low_freq_factor
    high = scaling.original_context_length / scaling.high_freq_factor
    if wavelength < high:
        return frequency
    if wavelength > low:
        return frequency / scaling.factor
    ratio = scaling.original_context_length / wavelength - scaling.low_freq_factor
    smooth = ratio / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def rope_table(config: ModelConfig, positions: int) -> torch.Tensor:
    """Cosines, then sines: fp32 [positions, head_dim].

    Angles are products of fp32 numbers as in the reference implementation; their cosine and sine
    are taken in fp64 and rounded once.
    """
    half = config.head_dim // 2
    frequencies = [config.rope_theta ** (-i / half) for i in range(half)]
    if config.rope_scaling is not None:
        frequencies = [_scaled(frequency, config.rope_scaling) for frequency in frequencies]
    steps = torch.tensor(frequencies, dtype=torch.float32)
    angles = (torch.arange(positions, dtype=torch.float32)[:, None] * steps).double()
    return torch.cat((angles.cos(), angles.sin()), dim=1).float().contiguous()
