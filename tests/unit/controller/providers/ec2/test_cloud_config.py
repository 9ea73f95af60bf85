from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.controller.providers.ec2.cloud_config import MAX_BYTES, read_cloud_config

GOOD = """#cloud-config
packages: [awscli-2]
write_files:
  - {path: /etc/x, content: "y", permissions: "0600"}
runcmd:
  - [systemctl, start, docker]
  - echo x
"""


def config(directory: Path, text: str) -> Path:
    path = directory / "node.yaml"
    path.write_text(text)
    return path


def test_a_cloud_config_is_read(tmp_path: Path) -> None:
    found = read_cloud_config(config(tmp_path, GOOD))
    assert [file.path for file in found.write_files] == ["/etc/x"]
    assert found.runcmd == (("systemctl", "start", "docker"), "echo x")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GOOD.replace("runcmd:", "run_cmd:"), "run_cmd"),
        (GOOD.replace("content", "contents"), "write_files.0.content"),
        (GOOD.replace("/etc/x", "etc/x"), "write_files.0.path"),
        (GOOD.replace("0600", "600"), "write_files.0.permissions"),
        (GOOD.replace("#cloud-config\n", ""), "#cloud-config"),
        (GOOD + f"# {'x' * MAX_BYTES}\n", str(MAX_BYTES)),
        ("#cloud-config\n- a\n", "node.yaml"),
    ],
)
def test_what_cloud_init_would_pass_over_is_refused(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        read_cloud_config(config(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"node\.yaml"):
        read_cloud_config(tmp_path / "node.yaml")
