"""`python -m bench`: the mesh's own figures, a file each and together in bench/out/mesh.json.

The engine over transformers, the router over its head engines, a crowd at a busy mesh, ten times
what it can do, and the stall of a killed stream.
Weights and placement have benchmarks of their own: `bench.tensorstore`, `bench.placement`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

OUT = Path(__file__).parent / "out"
PARTS = {
    "engine": (),
    "router": (),
    "crowd": (),
    "overload": (),
    "chaos": ("--kills", "12", "--solo", "2", "--pairs", "1", "--drains", "2"),
}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    figures, failed = {}, []
    for name, arguments in PARTS.items():
        print(f"bench.{name}", flush=True)
        out = OUT / f"{name}.json"
        out.unlink(missing_ok=True)
        command = (sys.executable, "-m", f"bench.{name}", *arguments, "--out", str(out))
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
        if out.exists():
            figures[name] = json.loads(out.read_text())
    (OUT / "mesh.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {OUT / 'mesh.json'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
