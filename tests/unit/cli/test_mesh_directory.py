from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState, ServiceRecord

STATE = MeshState(
    mesh_id="abc",
    supervisor_pid=1,
    model="m",
    phase="ready",
    message="ready",
    services=(ServiceRecord("router-0", 7, "127.0.0.1:50051", "http://127.0.0.1:8080"),),
)


def test_a_second_mesh_in_one_directory_is_refused_by_name(tmp_path: Path) -> None:
    first, second = MeshDirectory(tmp_path / "d"), MeshDirectory(tmp_path / "d")
    with first.locked(), pytest.raises(MeshError, match=r"already runs in .*/d"), second.locked():
        pass
    with second.locked():
        pass


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory = MeshDirectory(tmp_path)
    assert directory.read() is None
    directory.write(STATE)
    assert directory.read() == STATE
    assert directory.running().service("router-0").pid == 7
    directory.remove_state()
    with pytest.raises(MeshError, match="no mesh runs"):
        directory.running()


def test_an_unknown_service_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="no service router-9"):
        STATE.service("router-9")


def test_a_mesh_whose_supervisor_was_killed_does_not_count_as_running(tmp_path: Path) -> None:
    directory = MeshDirectory(tmp_path)
    directory.write(replace(STATE, supervisor_pid=2**22 + 1))
    with pytest.raises(MeshError, match="its supervisor has been killed; `shunt up` starts it"):
        directory.running()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"services": [{"name": 1}]}'])
def test_a_foreign_state_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "mesh.json").write_text(text)
    with pytest.raises(MeshError, match=r"mesh\.json is not a state file"):
        MeshDirectory(tmp_path).read()


def test_a_state_that_cannot_be_read_is_not_the_absence_of_a_mesh(tmp_path: Path) -> None:
    (tmp_path / "mesh.json").mkdir()
    with pytest.raises(MeshError, match=r"mesh\.json cannot be read: Is a directory"):
        MeshDirectory(tmp_path).read()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = MeshDirectory(tmp_path / "file" / "below")
    with pytest.raises(MeshError, match="cannot be used"), directory.locked():
        pass


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    directory = MeshDirectory(tmp_path)
    directory.logs.mkdir()
    (directory.logs / "router-0.log").write_text("a\nb\nc\n")
    assert directory.log_tail("router-0", 2) == "b\nc"
    assert directory.log_tail("router-0", start=2) == "b\nc"
    assert directory.log_tail("nobody") == ""
