from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.errors import AlreadyExists
from simulator.fleet import figures
from simulator.fleet.report import write_report
from simulator.fleet.result import Outcome
from simulator.fleet.run import FleetRun
from simulator.fleet.scenario import read_scenario

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def outcome(write: Callable[..., Path]) -> Outcome:
    return FleetRun(read_scenario(write(horizon_s=60)), "full", 0).outcome()


def test_a_report_is_one_page_and_its_figures(outcome: Outcome, tmp_path: Path) -> None:
    page = write_report(tmp_path / "out" / "report", [outcome]).read_text()
    assert "http" not in page.replace("xmlns", "")  # nothing is fetched
    assert page.count("data:image/png;base64,") == 2
    assert "scenario full" in page
    pictures = sorted((tmp_path / "out" / "report").glob("*.png"))
    assert [one.name for one in pictures] == ["scenario-full-0.png", "side-by-side.png"]
    assert all(one.read_bytes().startswith(PNG) for one in pictures)
    runs = json.loads((tmp_path / "out" / "report" / "runs.json").read_text())
    assert runs == [outcome.as_json()]
    write_report(tmp_path / "out" / "report", [outcome])  # takes the place of the first


def test_what_is_interrupted_leaves_no_half_report(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_report(tmp_path / "report", [outcome]).read_text()

    def interrupted(one: Outcome) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "over_time", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "report", [outcome])
    assert [one.name for one in tmp_path.iterdir() if one.is_dir()] == ["report"]
    assert (tmp_path / "report" / "index.html").read_text() == first


@pytest.mark.parametrize("beside", [(), ("index.html",), ("index.html", "runs.json")])
def test_a_folder_that_is_no_report_is_left_alone(
    outcome: Outcome, tmp_path: Path, beside: tuple[str, ...]
) -> None:
    for name in ("precious.txt", *beside):
        (tmp_path / name).write_text("keep")
    with pytest.raises(AlreadyExists):
        write_report(tmp_path, [outcome])
    assert (tmp_path / "precious.txt").read_text() == "keep"
