"""The model a mesh serves: imported into its store before the first start."""

from __future__ import annotations

import subprocess
import sys

from rich.console import Console

from services.cli.layout import MODEL
from services.cli.mesh_directory import MeshDirectory, MeshError
from services.common.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from services.common.stage_layout import parse_stages
from services.model.backends import backends_of
from services.tensorstore.places.backend import find_manifest, read_manifest
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


def check_stages(directory: MeshDirectory, name: str, text: str) -> None:
    """Raises MeshError for stages that the stored model cannot have."""
    backend, stages = DirectoryBackend(directory.store), parse_stages(text)
    _, manifest = read_manifest(backend, find_manifest(backend, name))
    try:
        if stages[-1].layers.end != manifest.tiling.layers:
            raise InvalidArgument(f"{name} has layers 0 to {manifest.tiling.layers - 1}")
        for stage in stages if manifest.is_tiled else ():  # of others a node's backend says it
            manifest.tiling.check_degree(stage.tp_degree)
    except InvalidArgument as error:
        raise MeshError(f"--stages: {error.message}") from None


def check_backend(directory: MeshDirectory, name: str, *backends: str) -> None:
    """Raises MeshError, in one line, where engines of none of these can compute what is stored."""
    store = DirectoryBackend(directory.store)
    try:
        _, manifest = read_manifest(store, find_manifest(store, name))
        served = backends_of(manifest.config, tiled=manifest.is_tiled)
        if not {*backends} & {*served.names}:
            served.check(backends[0])
    except (DataLoss, FailedPrecondition, NotFound) as error:
        raise MeshError(f"model {name}: {error.message}") from None


def newest(directory: MeshDirectory, name: str) -> str:
    """Digest of what the store has under a name now: a mesh serves that until its end."""
    return find_manifest(DirectoryBackend(directory.store), name)
