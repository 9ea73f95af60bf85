"""The commands of docs/ec2-first-hour.md are those that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from services.cli.ec2.app import app
from services.cli.ec2.quotas import vcpu_quota

PAGE = (Path(__file__).parents[4] / "docs/ec2-first-hour.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE, re.S | re.M))
LINES = [
    shlex.split(line, comments=True)[2:]
    for line in BLOCKS.replace("\\\n", " ").splitlines()
    if line.startswith("shunt ec2 ")
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_line_that_is_copied_is_understood(line: list[str]) -> None:
    command = typer.main.get_command(app)
    with command.make_context("ec2", line, resilient_parsing=False) as context:
        name, found, rest = command.resolve_command(context, line)  # type: ignore[attr-defined]
        assert found.make_context(name, rest).params


def test_the_page_walks_through_each_command() -> None:
    assert {line[0] for line in LINES} == {"plan", "up", "status", "down"}
    assert "shunt ec2 push NAME" in PAGE


def test_options_that_the_page_names_are_options() -> None:
    named = set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.M))
    known = {
        option
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    others = {"--tensor-parallel-size", "--gpu-memory-utilization", "--port"}  # of `vllm serve`
    assert named - others <= known


def test_quotas_that_the_page_names_are_those_that_commands_tell() -> None:
    told = set(re.findall(r"`(L-[0-9A-F]{8})`", PAGE))
    types = ("g6e.xlarge", "p4d.24xlarge", "p5.48xlarge")
    known = {vcpu_quota(name, spot=spot) for name in types for spot in (True, False)}
    known.add(vcpu_quota("m7i.large", spot=False))
    assert told == {quota.code for quota in known if quota is not None}
