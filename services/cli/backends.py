"""Where engines of a backend run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from services.cli.mesh_directory import MeshError
from services.common.nodes import Backend

ENVIRONMENT = ".venv-vllm"
"""Beside the environment that this runs in; `make vllm` makes it."""


def engine_python(backends: Sequence[Backend]) -> Path:
    """The interpreter for engines of whichever of these needs most: this one, where it has that;
    raises MeshError."""
    here = Path(sys.executable)
    if "vllm" not in backends or find_spec("vllm") is not None:
        return here
    beside = Path(sys.prefix).with_name(ENVIRONMENT)
    if not (beside / "installed").exists():
        raise MeshError(f"--backend vllm needs {beside}: `make vllm` makes it")
    return beside / "bin" / "python"
