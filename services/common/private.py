"""Files that hold what people asked and were answered: for their owner alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_OTHERS = 0o077


def keep_files_private() -> None:
    """What this process and its children create from now on, nobody else may read."""
    os.umask(_OTHERS)


def make_private(directory: Path) -> None:
    """Makes the directory, for its owner alone; one that is there is closed to others, if it is
    ours. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_mode & _OTHERS:
        with contextlib.suppress(PermissionError):
            directory.chmod(0o700)
