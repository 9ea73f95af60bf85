"""A model of a hub as a checkpoint: fetched to a directory beside the store, and gone with it.

The directory has the name of the commit, so that an import that was interrupted goes on with what
is there. It is removed once its model is stored.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from services.common.errors import Aborted, ResourceExhausted
from services.tensorstore.places.directory import translate
from services.tensorstore.sources.checkpoint import ORIGIN_FILE
from services.tensorstore.sources.hf_checkpoint import (
    HfCheckpoint,
    check_small,
    weight_files,
)
from services.tensorstore.sources.hub.fetch import Progress, fetch
from services.tensorstore.sources.hub.listing import HubFile, HubListing, HubModel, list_files


@contextmanager
def staged(
    api: HfApi, model: HubModel, root: Path, store: Path | None, progress: Progress
) -> Iterator[HfCheckpoint]:
    """Fetches the model below `root` and opens it. `store` is the directory it goes to, if it is
    one of this host.

    What cannot be served is refused by its small files, before any weights come. Raises what the
    hub, the disk and the checkpoint are refused for, Aborted while another import fetches it. The
    files are removed where the body succeeds.
    """
    listing = list_files(api, model)
    directory = root / model.repository.replace("/", "--") / listing.commit
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translate(error) from None
    with _alone(directory.with_suffix(".lock"), model):
        fetch(api, listing, listing.small, directory, lambda done, total: None)
        check_small(directory)
        wanted = weight_files(directory, [file.name for file in listing.files])
        weights = listing.named(wanted)
        _check_room(weights, directory, store)
        fetch(api, listing, weights, directory, progress)
        checkpoint = HfCheckpoint(directory)
        checkpoint.files = {**checkpoint.files, ORIGIN_FILE: _origin(listing)}
        try:
            yield checkpoint
        finally:
            checkpoint.close()
        shutil.rmtree(directory, ignore_errors=True)


def _origin(listing: HubListing) -> bytes:
    """The same for every name that a commit has, so that its model has one digest."""
    origin = {"repository": listing.repository, "commit": listing.commit}
    return json.dumps(origin, sort_keys=True).encode()


@contextmanager
def _alone(lock: Path, model: HubModel) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Aborted(f"another import of {model.repository} runs", field="source") from None
        yield
    finally:
        os.close(descriptor)


def _check_room(weights: Sequence[HubFile], directory: Path, store: Path | None) -> None:
    """Raises ResourceExhausted, naming by how much a disk is too small for what is to come and for
    the store's copy of it."""
    size_bytes = sum(file.size_bytes for file in weights)
    here_bytes = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    needs = {directory: max(0, size_bytes - here_bytes)}
    if store is not None:
        same = store.stat().st_dev == directory.stat().st_dev
        place = directory if same else store
        needs[place] = needs.get(place, 0) + size_bytes
    for place, need_bytes in needs.items():
        free_bytes = shutil.disk_usage(place).free
        if need_bytes > free_bytes:
            raise ResourceExhausted(
                f"the disk of {place} has {free_bytes / 1e9:.1f} GB free, fetching and storing the"
                f" model takes {need_bytes / 1e9:.1f} GB: {(need_bytes - free_bytes) / 1e9:.1f} GB"
                " too little",
                field="disk",
            )
