"""What a command says of an action that fails: a line on stderr, and an exit status."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import typer
from rich.console import Console

from services.cli.mesh_directory import MeshError

T = TypeVar("T")


def complain(what: str) -> None:
    """A line on stderr."""
    Console(stderr=True).print(
        f"shunt: {what}", style="red", markup=False, highlight=False, soft_wrap=True
    )


def told(action: Callable[[], T]) -> T:
    """Runs an action; an error the person can mend, a file that cannot be had among them, becomes a
    line and exit status 1, a bad setting one and 2."""
    from services.common.settings import TlsSettings, read

    read(TlsSettings)
    try:
        return action()
    except MeshError as error:
        complain(str(error))
        raise typer.Exit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        complain(f"{os.fsdecode(error.filename)}: {error.strerror}")
        raise typer.Exit(1) from None
