from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.deploy.stack import Stack

if TYPE_CHECKING:
    from tests.ec2.cloud import Cloud


@pytest.fixture(scope="session")
def stack(listening_cloud: Cloud) -> Stack:
    """A mesh's, deployed on moto."""
    made = Stack("prod", listening_cloud.url)
    made.create()
    return made
