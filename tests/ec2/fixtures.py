"""Fixtures of whoever tries something on EC2. Everybody's conftest has them, so moto is imported
where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ec2.cloud import Cloud

PRICES = """
0,g6e.xlarge,use1-az1,0.70
0,g6e.xlarge,use1-az2,0.75
0,g6e.xlarge,use1-az4,0.90
0,g5.xlarge,use1-az1,0.40
0,g5.xlarge,use1-az2,0.45
"""
TYPES = """
types:
  - {instance_type: g6e.xlarge, device_type: l40s, memory_bytes: 40000000000, relative_speed: 2,
     count: 4, price_per_hour: 1.861, interruptions_per_hour: 0.05, launch_s: 1}
  - {instance_type: g5.xlarge, device_type: a10g, memory_bytes: 20000000000, count: 4,
     price_per_hour: 1.006, interruptions_per_hour: 0.1, launch_s: 1}
reservations:
  - {id: cr-0123456789abcdef0, instance_type: g6e.xlarge, zone_id: use1-az2, count: 1,
     price_per_hour: 1.2}
"""


@pytest.fixture(scope="session")
def listening_cloud() -> Iterator[Cloud]:
    from tests.ec2.cloud import running

    with running() as cloud:
        cloud.make_template()
        yield cloud


@pytest.fixture
def cloud(listening_cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """Three zones, two types on spot."""
    from tests.ec2.cloud import read_prices

    for name, value in listening_cloud.environment().items():
        monkeypatch.setenv(name, value)
    listening_cloud.reset()
    listening_cloud.prices = read_prices(PRICES)
    yield listening_cloud
    listening_cloud.reset()


@pytest.fixture
def types_file(tmp_path: Path) -> Path:
    path = tmp_path / "types.yaml"
    path.write_text(TYPES)
    return path
