"""How long half of a model takes to come from each place that weights come from: the loader of an
engine, in a process of its own, behind a tensor store that has none of it yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median

from bench import tensorstore_s3
from bench.addressed import addressed
from experiments.starts.rows import DISK, PEER, S3
from services.common.generation import ModelRef
from services.tensorstore import upkeep
from services.tensorstore.places.backend import find_manifest
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.places.s3 import S3Backend

WEIGHTS = "engine.load.weights"
LOADS_S = 300.0
"""Of a process that loads; on an idle machine it takes five."""


def seconds(store: Path, model_id: str, root: Path, times: int) -> dict[str, float]:
    """Medians by source; of S3 where its server is installed. `root` is empty, and then full."""
    model = ModelRef(model_id, find_manifest(DirectoryBackend(store), model_id))
    found = {DISK: median(_loaded(str(store), model) for _ in range(times))}
    with _serving({"STORE": str(store)}) as first:
        of_peer = {"STORE": str(store), "PEERS": json.dumps([first])}  # which is asked first
        found[PEER] = median(_cold(of_peer, model, root, times))
    weed = tensorstore_s3.find_weed()
    if weed is not None:
        os.environ |= tensorstore_s3.CREDENTIALS
        with tensorstore_s3.server(weed, root / "s3") as endpoint:
            uri = f"s3://{tensorstore_s3.BUCKET}/starts"
            upkeep.copy(DirectoryBackend(store), S3Backend(uri, endpoint), model_id)
            of_s3 = {"STORE": uri, "ENDPOINT_URL": endpoint}
            found[S3] = median(_cold(of_s3, model, root, times))
    return found


def _cold(settings: Mapping[str, str], model: ModelRef, root: Path, times: int) -> Iterator[float]:
    """Each time through a node's store with an empty cache."""
    for number in range(times):
        cache = root / f"cache-{len(list(root.iterdir()))}-{number}"
        with _serving({**settings, "CACHE_DIRECTORY": str(cache)}) as address:
            yield _loaded(f"grpc://{address}", model)


def _loaded(store: str, model: ModelRef) -> float:
    command = [sys.executable, "-m", "experiments.starts.loading"]
    said = subprocess.run(
        [*command, store, model.model_id, model.digest],
        check=True,
        stdout=subprocess.PIPE,
        timeout=LOADS_S,
    )
    return float(json.loads(said.stdout)[WEIGHTS])


def _serving(settings: Mapping[str, str]) -> AbstractContextManager[str]:
    """A tensor store with these settings, at an address of its own."""
    named = {f"SHUNT_TENSORSTORE_{name}": value for name, value in settings.items()}
    free = {"SHUNT_TENSORSTORE_GRPC_PORT": "0"}
    command = [sys.executable, "-m", "services.tensorstore"]
    return addressed(command, {**os.environ, **named, **free})
