from __future__ import annotations

from pathlib import Path

import pytest
import typer

from services.cli.mesh_directory import MeshError
from services.cli.told import told


def _raise(error: Exception) -> None:
    raise error


def test_what_the_person_can_mend_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(lambda: 3) == 3
    (tmp_path / "file").write_text("")
    for action, said in (
        (lambda: _raise(MeshError("no mesh runs")), "shunt: no mesh runs\n"),
        (lambda: (tmp_path / "file").mkdir(), f"shunt: {tmp_path / 'file'}: File exists\n"),
        (lambda: (tmp_path / "none").read_text(), f"{tmp_path / 'none'}: No such file"),
    ):
        with pytest.raises(typer.Exit) as stop:
            told(action)
        assert stop.value.exit_code == 1
        assert said in capsys.readouterr().err


def test_what_is_a_defect_is_not_hidden() -> None:
    with pytest.raises(OSError, match="of no file"):
        told(lambda: _raise(OSError(5, "of no file")))
    with pytest.raises(ZeroDivisionError):
        told(lambda: 1 / 0)
