"""systemd units of deploy/: what systemd-analyze says of them, and what can be read anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from services.cli.node.settings import NodeSettings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/node/shunt-node.service"
LINE = re.compile(r"\[[A-Z][a-z]+\]|[A-Z][A-Za-z]+=\S.*|#.*|")


def _settings() -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for line in UNIT.read_text().splitlines():
        assert LINE.fullmatch(line), line
        name, _, value = line.partition("=")
        if not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_gives_a_node_time_to_drain_and_tells_it_alone() -> None:
    settings = _settings()
    told = dict(value.split("=", 1) for value in settings["Environment"])
    names = {f"SHUNT_NODE_{name.upper()}" for name in NodeSettings.model_fields}
    commented = re.findall(r"^#\s+(SHUNT_\w+)=", UNIT.read_text(), re.MULTILINE)
    assert {*told, *commented} <= names
    (stops_s,) = settings["TimeoutStopSec"]
    grace_s = NodeSettings.model_fields["stop_grace_s"].default
    assert float(stops_s) >= float(told["SHUNT_NODE_DRAIN_S"]) + 2 * grace_s
    assert settings["KillMode"] == ["mixed"]
    assert settings["RestartPreventExitStatus"] == ["2"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    text = UNIT.read_text().replace("/opt/shuntserve/bin/shunt", sys.executable)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("User=shuntserve", "User=root"))
    if tool is None:
        assert {"[Unit]", "[Service]", "[Install]"} <= set(_settings())
        return
    done = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])
