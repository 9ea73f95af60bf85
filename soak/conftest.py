from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.contract.controller.controller_process import (  # noqa: F401
    environment,
    first,
    second,
)
from tests.ec2.fixtures import cloud, listening_cloud  # noqa: F401
from tests.postgres import cluster, own_cluster  # noqa: F401


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=120.0) as client:
        yield client
