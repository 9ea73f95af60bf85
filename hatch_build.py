"""Generates the Python code of protos/ into gen/ before anything is installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> None:
    """Writes gen/shuntserve/<service>/v1/ with stubs; raises RuntimeError on a bad proto."""
    protos, gen = root / "protos", root / "gen"
    shutil.rmtree(gen, ignore_errors=True)
    gen.mkdir()
    well_known = Path(protoc.__file__).parent / "_proto"
    beside = Path(sys.executable).parent
    path = os.pathsep.join([str(beside), os.environ.get("PATH", "")])
    plugins = [
        f"--plugin={name}={found}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (found := shutil.which(name, path=path))
    ]
    sources = sorted(str(p.relative_to(protos)) for p in protos.rglob("*.proto"))
    arguments = [
        "protoc",
        *plugins,
        f"-I{protos}",
        f"-I{well_known}",
        f"--python_out={gen}",
        f"--grpc_python_out={gen}",
        f"--mypy_out=quiet:{gen}",
        f"--mypy_grpc_out=quiet:{gen}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; its messages are above")


class ProtoHook(BuildHookInterface[Any]):
    """Hatch calls this for every build target."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if (root / "protos").is_dir():
            generate(root)
        if self.target_name == "wheel" and version != "editable":
            build_data["force_include"]["gen/shuntserve"] = "shuntserve"
            build_data["force_include"]["deploy/ec2"] = "services/cli/ec2/data"


if __name__ == "__main__":
    generate(Path(__file__).parent)
    sys.exit(0)
