"""Loaders of others that read the same file, where they are installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


def fast_safetensors(path: Path) -> None:
    """To tensors that are used where they were read, as ours are."""
    opened: Any = importlib.import_module("fastsafetensors").fastsafe_open(
        [str(path)], device="cpu", nogds=True
    )
    with opened as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors.clear()


def runai_streamer(path: Path) -> None:
    """To tensors that are used where they were read, as ours are."""
    streamer: Any = importlib.import_module("runai_model_streamer").SafetensorsStreamer()
    with streamer as opened:
        opened.stream_files([str(path)])
        dict(opened.get_tensors()).clear()


OTHERS = {"fastsafetensors": fast_safetensors, "runai_model_streamer": runai_streamer}
