"""The mesh that a command is about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from services.cli.mesh_directory import MeshDirectory
from services.cli.told import told

DataDir = Annotated[Path, typer.Option("--data-dir", help="One mesh a data directory.")]
DEFAULT_DATA_DIR = Path(".shunt")


def mesh_in(data_dir: Path) -> MeshDirectory:
    """A mesh, to which this process speaks as its operator, where there are certificates."""
    from services.common.settings import TlsSettings

    directory = MeshDirectory(data_dir)
    state = told(directory.read)
    if state is not None and state.certificates is not None:
        os.environ.setdefault(TlsSettings.name_of("directory"), state.certificates)
    return directory
