"""SeaweedFS for the bench, started here and thrown away."""

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

BUCKET = "bench"
CONFIG = Config(max_pool_connections=32, response_checksum_validation="when_required")
_KEY, _SECRET = "bench", "bench-secret"


def _free_ports(count: int) -> list[int]:
    """Different ones: all are bound before the first is given back."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextmanager
def server(root: Path) -> Iterator[str]:
    """The endpoint of a running server; credentials are put into the environment."""
    (root / "data").mkdir(parents=True)
    identity = {
        "name": "bench",
        "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (root / "s3.json").write_text(json.dumps({"identities": [identity]}))
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    names = ("s3.port", "master.port", "volume.port", "filer.port")
    port, *others = _free_ports(2 * len(names))
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={root / 'data'}"]
    command += ["-s3", f"-s3.config={root / 's3.json'}", "-volume.max=20"]
    command += [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]  # fixed ports otherwise: one server a host
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=1024", f"-s3.port={port}"]
    flags = [*names[1:], *(f"{name}.grpc" for name in names)]
    command += [f"-{flag}={other}" for flag, other in zip(flags, others, strict=True)]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    quiet = subprocess.DEVNULL
    running = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _make_bucket(endpoint)
        yield endpoint
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(20)


@retry(stop=stop_after_delay(60), wait=wait_fixed(0.3))
def _make_bucket(endpoint: str) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
