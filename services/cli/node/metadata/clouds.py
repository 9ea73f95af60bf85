"""Which cloud this machine is of: as somebody says, or by what its firmware says of its maker."""

from __future__ import annotations

from pathlib import Path

from services.cli.node.metadata import azure, ec2, gcp
from services.cli.node.metadata.cloud import Clocks, Cloud
from services.cli.node.metadata.service import MetadataService

_FIRMWARE = "sys/class/dmi/id"
_FILES = ("sys_vendor", "bios_vendor", "bios_version", "product_name")
_MAKERS = (("amazon", "ec2"), ("google", "gcp"), ("microsoft", "azure"))
_URLS = {"ec2": ec2.URL, "gcp": gcp.URL, "azure": azure.URL}


def maker(root: Path) -> str:
    """The cloud whose name the firmware holds; empty where it holds none."""
    said = ""
    for name in _FILES:
        try:
            said += (root / _FIRMWARE / name).read_text(errors="replace").lower()
        except OSError:
            continue
    return next((cloud for word, cloud in _MAKERS if word in said), "")


def open_cloud(
    name: str, url: str, clocks: Clocks, *, timeout_s: float, pause_s: float
) -> Cloud | None:
    """The one of this name, asked at the URL, or where it usually is when that is empty; None for
    none."""
    if name not in _URLS:
        return None
    service = MetadataService(url or _URLS[name], timeout_s)
    if name == "ec2":
        return ec2.Ec2(service, clocks, pause_s=pause_s)
    if name == "gcp":
        return gcp.Gcp(service, clocks, pause_s=pause_s)
    return azure.Azure(service, clocks, pause_s=pause_s)
