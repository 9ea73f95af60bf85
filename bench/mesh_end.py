"""Takes a mesh down when whoever started it is no more, however that one ended.

`python -m bench.mesh_end DATA_DIR` waits for the end of its standard input, a pipe whose other end
is held by who runs the mesh, and by the `shunt up` that starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parents[1]
WAIT_S = 120.0
"""For a mesh to be taken down."""


@contextmanager
def ends_with_us(data_dir: Path) -> Iterator[int]:
    """The mesh in this directory goes down at the end of the block, if it is up still, or with this
    process. The descriptor is to be passed on to what starts the mesh."""
    read, write = os.pipe()
    try:
        command = [sys.executable, "-m", "bench.mesh_end", str(data_dir.absolute())]
        waits = subprocess.Popen(command, stdin=read, start_new_session=True, cwd=HERE)
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    try:
        yield write
    finally:
        os.close(write)
        waits.wait(WAIT_S)


def main() -> None:
    sys.stdin.buffer.read()
    from services.cli.down import take_down  # who waits needs none of it
    from services.cli.mesh_directory import MeshDirectory

    take_down(MeshDirectory(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
