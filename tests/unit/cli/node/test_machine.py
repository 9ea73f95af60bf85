from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.node import machine
from services.cli.node.machine import devices, devices_of, is_loopback, own_address, told_by
from services.cli.node.metadata.cloud import Clocks
from services.cli.node.metadata.clouds import open_cloud
from services.common.machine import NOTHING_KNOWN, Device
from tests.fake_metadata import FakeEc2, serving

TWO = "NVIDIA A10G, 23028\nNVIDIA A10G, 23028\n"


def test_the_driver_says_which_gpus_there_are() -> None:
    assert devices_of(TWO) == (Device("NVIDIA A10G", 23028 << 20),) * 2
    assert devices_of("NVIDIA H200, 143771\n") == (Device("NVIDIA H200", 150_754_820_096),)
    assert devices_of("NVIDIA-SMI has failed because it couldn't communicate") == ()
    assert devices_of("Tesla T4, [N/A]\n, 5\nL4, 0\n") == ()


@given(st.text(max_size=60))
def test_whatever_it_says_it_is_read(text: str) -> None:
    assert all(device.name and device.memory_bytes > 0 for device in devices_of(text))


def _tool(directory: Path, script: str) -> None:
    path = directory / machine.SMI
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("script", "limit_s", "count"),
    [
        (f"printf '{TWO}'", 60.0, 2),
        ("echo no driver; exit 9", 60.0, 0),
        ("exec sleep 60", 0.1, 0),
    ],
)
async def test_gpus_are_those_that_the_drivers_tool_finds_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, limit_s: float, count: int
) -> None:
    monkeypatch.setattr(machine, "_SMI_S", limit_s)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    _tool(tmp_path, script)
    assert len(await devices()) == count


async def test_what_the_cloud_says_is_waited_for_and_then_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    fake = FakeEc2()
    async with serving(fake) as url:
        cloud = open_cloud(
            "ec2", url, Clocks(lambda: 0.0, lambda: 0.0), timeout_s=60.0, pause_s=1.0
        )
        assert (await told_by(cloud, 60.0)).instance_type == "g6.xlarge"
        fake.hangs = True
        assert await told_by(cloud, 0.2) == NOTHING_KNOWN
    assert await told_by(None, 5.0) == NOTHING_KNOWN
    assert [record.getMessage() for record in caplog.records] == ["nothing known of the machine"]


def test_the_address_here_is_the_one_that_the_peer_sees() -> None:
    assert own_address("127.0.0.1:7002") == "127.0.0.1"
    assert own_address("name.invalid:7002") == ""


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("", False)],
)
def test_loopback_is_this_host_alone(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
