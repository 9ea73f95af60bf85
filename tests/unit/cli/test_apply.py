from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.apply import MAX_BYTES, apply_plan, read_plan
from services.cli.mesh_directory import MeshDirectory, MeshError


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="No such file"):
        read_plan(tmp_path / "nowhere.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeshError, match="not UTF-8"):
        read_plan(binary)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(MeshError, match=f"at most {MAX_BYTES} bytes"):
        read_plan(large)


async def test_the_file_is_looked_at_before_the_mesh(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    with pytest.raises(MeshError, match="no mesh"):
        await apply_plan(MeshDirectory(tmp_path), plan)
    with pytest.raises(MeshError, match="No such file"):
        await apply_plan(MeshDirectory(tmp_path), tmp_path / "nowhere.json")
