"""The model a mesh serves: imported into its store before the first start."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from services.cli.layout import MODEL
from services.cli.mesh_directory import MeshDirectory, MeshError
from services.tensorstore.places.backend import find_manifest
from services.tensorstore.places.directory import DirectoryBackend


def import_if_missing(directory: MeshDirectory, name: str, console: Console) -> None:
    """Runs `shunt model import` with its progress bar; raises MeshError when it fails."""
    directory.store.mkdir(parents=True, exist_ok=True)
    if name in DirectoryBackend(directory.store).names():
        return
    if name != MODEL:
        raise MeshError(
            f"model {name} is not stored; `shunt model import SOURCE --name {name} "
            f"--store {directory.store}` brings it there"
        )
    console.print(f"importing {name}")
    command = [sys.executable, "-m", "services.cli", "model", "import"]
    result = subprocess.run([*command, "--store", str(directory.store)], check=False)
    if result.returncode != 0:
        raise MeshError(f"{name} could not be imported; the reason stands above")


def newest(directory: MeshDirectory, name: str) -> str:
    """Digest of what the store has under a name now: a mesh serves that until its end."""
    return find_manifest(DirectoryBackend(directory.store), name)
