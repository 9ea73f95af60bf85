"""A cache fetches what it lacks, believes nothing, keeps its bound and never breaks a mapping."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from services.common.errors import DataLoss, NotFound, ResourceExhausted, Unavailable
from services.common.generation import LayerRange
from services.tensorstore.backend import Pieces
from services.tensorstore.cache import ChunkCache, Source
from services.tensorstore.client import Model
from services.tensorstore.directory import DirectoryBackend
from services.tensorstore.slices import Selection
from services.tensorstore.tiers import TieredResidence
from tests.checkpoints import bits

ROOMY = 1 << 30


class Counting:
    """A source that counts, and spoils what it is told to."""

    def __init__(self, backend: Source) -> None:
        self.backend = backend
        self.read_bytes = 0
        self.spoil = 0
        self.error: Exception | None = None
        self.lock = threading.Lock()

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        if self.error is not None:
            raise self.error
        with self.lock:
            spoil = self.spoil > 0
            self.spoil -= spoil
        for piece in self.backend.pieces(digest, start, stop):
            with self.lock:
                self.read_bytes += len(piece)
            piece[0] ^= spoil
            yield piece


@pytest.fixture
def source(tiny) -> Counting:
    return Counting(tiny.backend)


def make_cache(root: Path, sources: Sequence[Source], limit_bytes: int = ROOMY) -> ChunkCache:
    return ChunkCache(root, limit_bytes, sources)


def select(tiny, start: int = 0, end: int = 3, degree: int = 1, rank: int = 0) -> Selection:
    return Selection.of(tiny.imported.digest, tiny.imported.manifest, start, end, degree, rank)


def assert_whole(tiny, cache: ChunkCache | TieredResidence) -> None:
    model = Model("tiny", tiny.imported.digest, tiny.imported.manifest, tiny.backend, cache)
    with model.stage(LayerRange(0, 3)) as stage:
        for name, tensor in stage.tensors.items():
            assert torch.equal(bits(tensor), bits(tiny.tensors[name])), name


def test_a_slice_is_fetched_once_and_only_it(tiny, source: Counting, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", [source])
    read = 0
    for degree in (8, 4, 2, 1):
        for rank in range(degree):
            selection = select(tiny, degree=degree, rank=rank)
            with cache.hold(selection, None):
                pass
            assert source.read_bytes - read <= selection.size_bytes
            read = source.read_bytes
    assert read == sum(chunk.size_bytes for chunk in tiny.imported.manifest.chunks)
    assert_whole(tiny, cache)
    assert source.read_bytes == read


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_the_bytes_read_are_those_of_the_slice(
    tiny, source: Counting, tmp_path: Path, degree: int
) -> None:
    for rank in range(degree):
        cache = make_cache(tmp_path / f"c{rank}", [source])
        selection = select(tiny, 1, 2, degree, rank)
        before = source.read_bytes
        with cache.hold(selection, None):
            pass
        assert source.read_bytes - before == selection.size_bytes


def test_damage_on_the_way_is_fetched_again(tiny, source: Counting, tmp_path: Path) -> None:
    source.spoil = 2
    assert_whole(tiny, make_cache(tmp_path / "c", [source]))


def test_damage_that_stays_is_data_loss_and_never_kept(
    tiny, source: Counting, tmp_path: Path
) -> None:
    source.spoil = 10**9
    cache = make_cache(tmp_path / "c", [source])
    with pytest.raises(DataLoss, match="chunk"), cache.hold(select(tiny), None):
        pass
    source.spoil = 0
    assert_whole(tiny, cache)


def test_an_interrupted_fetch_goes_on(tiny, source: Counting, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", [source])
    with cache.hold(select(tiny, 0, 2), None):
        pass
    (tmp_path / "c" / "verified" / tiny.imported.digest).unlink()
    source.error = Unavailable("away")
    again = make_cache(tmp_path / "c", [source])
    with again.hold(select(tiny, 0, 2), None):
        pass


def test_damage_in_the_cache_before_entry_is_mended(tiny, source: Counting, tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", [source]).hold(select(tiny), None) as found:
        paths = [Path(path) for path in found]
        for path in paths:
            with path.open("r+b") as file:
                file.write(bytes([file.read(1)[0] ^ 4]))
                file.seek(0)
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)
    assert_whole(tiny, make_cache(tmp_path / "c", [source]))


def test_peers_are_asked_before_the_store(tiny, tmp_path: Path) -> None:
    peers = [Counting(tiny.backend), Counting(tiny.backend)]
    store = Counting(tiny.backend)
    assert_whole(tiny, make_cache(tmp_path / "c", [*peers, store]))
    assert store.read_bytes == 0
    assert all(peer.read_bytes > 0 for peer in peers)


@pytest.mark.parametrize("error", [NotFound("no"), Unavailable("away"), DataLoss("bad")])
def test_the_store_stands_in_for_peers(tiny, tmp_path: Path, error: Exception) -> None:
    peer, store = Counting(tiny.backend), Counting(tiny.backend)
    peer.error = error
    assert_whole(tiny, make_cache(tmp_path / "c", [peer, store]))
    assert store.read_bytes > 0


def test_a_lying_peer_is_not_believed(tiny, tmp_path: Path) -> None:
    peer, store = Counting(tiny.backend), Counting(tiny.backend)
    peer.spoil = 10**9
    assert_whole(tiny, make_cache(tmp_path / "c", [peer, store]))
    assert store.read_bytes > 0


def test_the_bound_is_kept_and_the_least_recently_used_goes_first(
    tiny, source: Counting, tmp_path: Path
) -> None:
    one_layer = max(select(tiny, n, n + 1).size_bytes for n in range(3))
    limit = 2 * one_layer + 4 * 4096
    cache = make_cache(tmp_path / "c", [source], limit)
    for start in (0, 1, 0, 2):
        with cache.hold(select(tiny, start, start + 1), None):
            pass
        assert cache.used_bytes <= limit
    read = source.read_bytes
    with cache.hold(select(tiny, 2, 3), None):
        pass
    assert source.read_bytes == read
    with cache.hold(select(tiny, 1, 2), None):
        pass
    assert source.read_bytes > read


def test_a_slice_larger_than_the_bound_is_refused(tiny, source: Counting, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", [source], 5000)
    with pytest.raises(ResourceExhausted, match="5000"), cache.hold(select(tiny), None):
        pass


def test_what_is_mapped_outlives_its_place_in_the_cache(
    tiny, source: Counting, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path / "c", [source])
    model = Model("tiny", tiny.imported.digest, tiny.imported.manifest, tiny.backend, cache)
    with model.stage(LayerRange(0, 3)) as stage:
        for chunk in tiny.imported.manifest.chunks:
            cache.discard(chunk.digest)
        assert_whole(tiny, cache)
        name = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(bits(stage.tensors[name]), bits(tiny.tensors[name]))


def test_a_full_disk_is_an_error_and_leaves_the_cache_usable(
    tiny, source: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(tmp_path / "c", [source])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceExhausted, match="space"), cache.hold(select(tiny), None):
            pass
    assert_whole(tiny, cache)


def test_many_threads_fill_one_cache(tiny, source: Counting, tmp_path: Path) -> None:
    caches = [make_cache(tmp_path / "c", [source]) for _ in range(2)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with caches[number % 2].hold(select(tiny, 0, 3, 4, number % 4), None):
                pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_whole(tiny, caches[0])


def test_memory_is_filled_from_disk_and_damage_there_is_mended(
    tiny, source: Counting, tmp_path: Path
) -> None:
    disk = make_cache(tmp_path / "disk", [source])
    with disk.hold(select(tiny), None) as found:
        paths = [Path(path) for path in found]
    data = bytearray(paths[0].read_bytes())
    data[3] ^= 1
    stamp = paths[0].stat()
    with paths[0].open("r+b") as file:
        file.write(data)
    os.utime(paths[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    memory = make_cache(tmp_path / "memory", [DirectoryBackend(tmp_path / "disk")])
    tiers = TieredResidence(disk, memory)
    assert_whole(tiny, tiers)
    with tiers.hold(select(tiny), None) as found:
        assert all(tmp_path / "memory" in Path(path).parents for path in found)


def test_a_slice_too_large_for_memory_is_mapped_from_disk(
    tiny, source: Counting, tmp_path: Path
) -> None:
    disk = make_cache(tmp_path / "disk", [source])
    memory = make_cache(tmp_path / "memory", [DirectoryBackend(tmp_path / "disk")], 5000)
    with TieredResidence(disk, memory).hold(select(tiny), None) as found:
        assert all(tmp_path / "disk" in Path(path).parents for path in found)
