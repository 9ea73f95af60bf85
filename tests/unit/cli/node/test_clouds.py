from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.node.metadata.cloud import Clocks
from services.cli.node.metadata.clouds import maker, open_cloud


@pytest.mark.parametrize(
    ("file", "text", "cloud"),
    [
        ("sys_vendor", "Amazon EC2\n", "ec2"),
        ("bios_version", "4.11.amazon\n", "ec2"),
        ("sys_vendor", "Google\n", "gcp"),
        ("sys_vendor", "Microsoft Corporation\n", "azure"),
        ("sys_vendor", "LENOVO\n", ""),
    ],
)
def test_a_machine_is_of_the_cloud_that_its_firmware_names(
    tmp_path: Path, file: str, text: str, cloud: str
) -> None:
    assert maker(tmp_path) == ""
    firmware = tmp_path / "sys/class/dmi/id"
    firmware.mkdir(parents=True)
    (firmware / file).write_text(text)
    assert maker(tmp_path) == cloud


@pytest.mark.parametrize("name", ["ec2", "gcp", "azure", "none"])
def test_each_cloud_is_asked_by_its_name(name: str) -> None:
    clocks = Clocks(lambda: 0.0, lambda: 0.0)
    cloud = open_cloud(name, "", clocks, timeout_s=1.0, pause_s=5.0)
    assert (None if name == "none" else name) == (cloud and cloud.name)
