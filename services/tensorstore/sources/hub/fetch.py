"""Files of a hub brought to a directory of this host, several at a time, each verified.

A file that was begun, in this process or an earlier one, goes on where it was. What came is
compared with the digest that the hub named for the commit, and has its name only then; what differs
is fetched anew, then given up. Of huggingface_hub the request itself is used: its hf_hub_download
keeps no part of a file, and looks at sizes alone.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from services.common.errors import Aborted, DataLoss
from services.tensorstore.sources.hub.calls import told, tried
from services.tensorstore.sources.hub.listing import HubFile, HubListing

FILES_AT_ONCE = 4
PARTIAL = ".partial"
"""How the names of files end that are not all there, or not verified."""
_BUFFER_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


def fetch(
    api: HfApi,
    listing: HubListing,
    files: Sequence[HubFile],
    directory: Path,
    progress: Progress,
) -> None:
    """What is there already is only verified. Raises Unavailable or DataLoss when a file cannot be
    had as the hub describes it; what came of it and of the others stays for the next call."""
    counter = _Counter(sum(file.size_bytes for file in files), progress)

    def one(file: HubFile) -> None:
        tried(lambda: _download(api, listing, file, directory, counter))

    with ThreadPoolExecutor(FILES_AT_ONCE, "hub") as pool:
        futures = [pool.submit(one, file) for file in files]
        try:
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            done, waiting = set(), set(futures)
            raise
        finally:
            if waiting:
                counter.stop()
            for future in waiting:
                future.cancel()
    for future in done:
        future.result()


def _download(
    api: HfApi, listing: HubListing, file: HubFile, directory: Path, counter: _Counter
) -> None:
    path = directory / file.name
    partial = path.with_name(path.name + PARTIAL)
    with told(listing.repository, listing.commit, file.name):
        if path.exists():
            path.replace(partial)  # verified once more
        partial.parent.mkdir(exist_ok=True)
        with partial.open("ab") as into:
            begun_bytes = into.tell()
            counter.set(file.name, begun_bytes)
            if begun_bytes < file.size_bytes:
                http_get(
                    hf_hub_url(
                        listing.repository,
                        file.name,
                        revision=listing.commit,
                        endpoint=api.endpoint,
                    ),
                    into,
                    resume_size=begun_bytes,
                    headers=build_hf_headers(token=api.token),
                    expected_size=file.size_bytes,
                    tqdm_class=counter.bar(file.name),
                )
        _verify(file, partial)
        partial.replace(path)
    counter.set(file.name, file.size_bytes)


def _verify(file: HubFile, path: Path) -> None:
    """Removes a file that is not what the hub describes, and raises DataLoss."""
    size = path.stat().st_size
    if size != file.size_bytes:
        wrong = f"{size} bytes, not {file.size_bytes}"
    else:
        wanted = file.sha256 or file.blob_id
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        found = _digest(path, hashlib.sha256() if file.sha256 else blob)
        wrong = "" if found == wanted else f"digest {found[:12]}, not {wanted[:12]}"
    if wrong:
        path.unlink()
        raise DataLoss(f"{file.name} came with {wrong}", field=file.name)


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while data := file.read(_BUFFER_BYTES):
            digest.update(data)
    return str(digest.hexdigest())


class _Counter:
    """Bytes of all files together, told as they come; several threads count."""

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._progress = progress
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._stopped = False

    def stop(self) -> None:
        """Ends the other downloads at their next piece."""
        self._stopped = True

    def set(self, name: str, size_bytes: int) -> None:
        with self._lock:
            self._done[name] = size_bytes
            self._progress(min(sum(self._done.values()), self._total_bytes), self._total_bytes)

    def add(self, name: str, size_bytes: int) -> None:
        """Raises Aborted once another file has failed."""
        if self._stopped:
            raise Aborted("another file of the model could not be fetched", field="source")
        self.set(name, max(0, self._done.get(name, 0) + size_bytes))

    def bar(self, name: str) -> type[tqdm]:
        """A progress bar for the library, which shows nothing and counts here."""
        counter = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
                counter.set(name, int(kwargs.get("initial") or 0))

            def update(self, n: float | None = 1) -> bool | None:
                counter.add(name, int(n or 0))
                return None

        return Bar
