"""One round of fetching asks each source no more than makes sense."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.errors import (
    DataLoss,
    DeadlineExceeded,
    NotFound,
    OutOfRange,
    ShuntError,
    Unavailable,
)
from services.tensorstore.cache.fetch import Fetch, Job, jobs_of
from services.tensorstore.places.backend import Pieces


class Asked:
    """A source that counts how often it is asked, and fails as told."""

    def __init__(self, backend: object = None, error: ShuntError | None = None) -> None:
        self.backend, self.error, self.times = backend, error, 0

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        self.times += 1
        if self.error is not None:
            raise self.error
        yield from self.backend.pieces(digest, start, stop)  # type: ignore[attr-defined]


@pytest.fixture
def jobs(tiny, tmp_path: Path) -> Iterator[list[Job]]:
    chunk = max(tiny.imported.manifest.chunks, key=lambda chunk: len(chunk.ends))
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, chunk.size_bytes)
    yield jobs_of(chunk, descriptor, range(0, len(chunk.ends), 2))
    os.close(descriptor)


def test_tiles_apart_are_jobs_apart(jobs: list[Job]) -> None:
    assert len(jobs) > 1
    assert [job.last - job.first for job in jobs] == [1] * len(jobs)


@pytest.mark.parametrize(
    ("error", "once"),
    [
        (Unavailable("away"), True),
        (DeadlineExceeded("slow"), True),
        (NotFound("not this"), False),
        (DataLoss("bad"), False),
    ],
)
def test_a_peer_that_does_not_answer_is_asked_once_a_round(
    tiny, jobs: list[Job], error: ShuntError, once: bool
) -> None:
    peer, store, arrived = Asked(error=error), Asked(tiny.backend), []
    with Fetch([peer, store], None, None, arrived.append) as fetch:
        for job in jobs:
            fetch.run([job])
    assert peer.times == (1 if once else len(jobs))
    assert store.times == len(jobs)
    assert sum(arrived) == sum(job.stop - job.start for job in jobs)


def test_the_first_error_ends_the_round(tiny, jobs: list[Job]) -> None:
    store = Asked(error=Unavailable("away"))
    with Fetch([store], None, None, lambda _: None) as fetch:
        for job in jobs:
            with pytest.raises(Unavailable, match="away"):
                fetch.run([job])
    assert store.times == 1


class Partly:
    """A peer that has some tiles."""

    def __init__(self, backend, chunk, tiles: set[int]) -> None:
        self.backend, self.chunk, self.tiles, self.sent_bytes = backend, chunk, tiles, 0

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        wanted = set(self.chunk.tiles_over(start, stop))
        if not wanted & self.tiles:
            raise NotFound("nothing")
        if wanted - self.tiles:
            raise OutOfRange("a part")
        for piece in self.backend.pieces(digest, start, stop):
            self.sent_bytes += len(piece)
            yield piece


def test_peers_send_the_parts_that_they_have(tiny, jobs: list[Job]) -> None:
    chunk = jobs[0].chunk
    tiles = len(chunk.ends)
    one = Partly(tiny.backend, chunk, set(range(0, tiles // 2)))
    other = Partly(tiny.backend, chunk, set(range(tiles // 3, tiles - 1)))
    store = Partly(tiny.backend, chunk, set(range(tiles)))
    with Fetch([one, other, store], None, None, lambda _: None) as fetch:
        fetch.run(jobs_of(chunk, jobs[0].descriptor, range(tiles)))
    assert store.sent_bytes == chunk.span([tiles - 1])
    assert one.sent_bytes + other.sent_bytes == chunk.size_bytes - store.sent_bytes
    assert os.pread(jobs[0].descriptor, chunk.size_bytes, 0) == (
        tiny.backend.path(chunk.digest).read_bytes()
    )
