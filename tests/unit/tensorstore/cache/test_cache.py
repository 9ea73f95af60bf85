"""A cache fetches what it lacks, believes nothing, keeps its bound and never breaks a mapping."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.common.errors import (
    DataLoss,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from services.common.generation import LayerRange
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.cache.fetch import Source
from services.tensorstore.cache.residence import LocalResidence
from services.tensorstore.cache.tiers import TieredResidence
from services.tensorstore.client import StoredModel
from services.tensorstore.format.slices import Range, Selection
from services.tensorstore.places.backend import Pieces
from tests.checkpoints import bits, rot

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
    model = StoredModel("tiny", tiny.imported.digest, tiny.imported.manifest, tiny.backend, cache)
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
            path.chmod(0o644)
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


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no"),
        Unavailable("away"),
        DataLoss("bad"),
        DeadlineExceeded("slow"),
        PermissionDenied("not you"),
        ResourceExhausted("busy"),
    ],
)
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
    model = StoredModel("tiny", tiny.imported.digest, tiny.imported.manifest, tiny.backend, cache)
    with model.stage(LayerRange(0, 3)) as stage:
        for chunk in tiny.imported.manifest.chunks:
            assert cache.forget(chunk.digest)
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
    paths[0].chmod(0o644)
    with paths[0].open("r+b") as file:
        file.write(data)
    os.utime(paths[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    tiers = TieredResidence(disk, disk.root, tmp_path / "memory", ROOMY, [source])
    assert_whole(tiny, tiers)
    with tiers.hold(select(tiny), None) as found:
        assert all(tmp_path / "memory" in Path(path).parents for path in found)


def test_a_slice_too_large_for_memory_is_mapped_from_disk(
    tiny, source: Counting, tmp_path: Path
) -> None:
    disk = make_cache(tmp_path / "disk", [source])
    tiers = TieredResidence(disk, disk.root, tmp_path / "memory", 5000)
    with tiers.hold(select(tiny), None) as found:
        assert all(tmp_path / "disk" in Path(path).parents for path in found)


class Gate:
    """A source that waits with one chunk until it is let go."""

    def __init__(self, backend: Source, digest: str) -> None:
        self.backend, self.digest = backend, digest
        self.reached, self.go = threading.Event(), threading.Event()

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        if digest == self.digest:
            self.reached.set()
            assert self.go.wait(60)
        yield from self.backend.pieces(digest, start, stop)


class Overlong:
    """A source that sends on behind what it was asked for, other bytes than there are."""

    def __init__(self, backend: Source) -> None:
        self.backend = backend

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        yield from self.backend.pieces(digest, start, stop)
        yield memoryview(bytearray(b"x" * 64))


def digests_of(tiny, start: int, end: int) -> list[str]:
    selection = select(tiny, start, end)
    return [selection.manifest.chunks[wanted.chunk].digest for wanted in selection.ranges]


def test_what_one_cache_holds_no_other_forgets(tiny, source: Counting, tmp_path: Path) -> None:
    one = make_cache(tmp_path / "c", [source])
    other = make_cache(tmp_path / "c", [source], select(tiny, 0, 1).size_bytes + 8192)
    with one.hold(select(tiny, 1, 2), None) as held:
        with pytest.raises(ResourceExhausted), other.hold(select(tiny, 0, 1), None):
            pass
        assert [Path(file).stat().st_ino for file in held] == [file.inode for file in held]
        assert not any(other.forget(digest) for digest in digests_of(tiny, 1, 2))
    with other.hold(select(tiny, 0, 1), None):
        assert not any(Path(file).exists() for file in held)


def test_what_one_cache_fills_no_other_forgets(tiny, tmp_path: Path) -> None:
    gate = Gate(tiny.backend, digests_of(tiny, 1, 2)[-1])
    one = make_cache(tmp_path / "c", [gate])
    other = make_cache(tmp_path / "c", [tiny.backend], 1)
    filling = threading.Thread(target=assert_whole, args=(tiny, one))
    filling.start()
    try:
        assert gate.reached.wait(60)
        assert not any(other.forget(digest) for digest in digests_of(tiny, 0, 3))
    finally:
        gate.go.set()
        filling.join()
    with one.hold(select(tiny), None) as held:
        assert all(Path(file).exists() for file in held)


def test_a_chunk_that_is_complete_waits_for_no_other(tiny, tmp_path: Path) -> None:
    gate = Gate(tiny.backend, digests_of(tiny, 2, 3)[-1])
    filling = threading.Thread(target=assert_whole, args=(tiny, make_cache(tmp_path / "c", [gate])))
    filling.start()
    opened = threading.Event()

    def open_first() -> None:
        with make_cache(tmp_path / "c", [tiny.backend]).hold(select(tiny, 0, 1), None):
            opened.set()

    opening = threading.Thread(target=open_first)
    try:
        assert gate.reached.wait(60)
        opening.start()
        assert opened.wait(60)
    finally:
        gate.go.set()
        filling.join()
        opening.join()


def test_a_tile_that_may_be_mapped_is_not_written_over(
    tiny, source: Counting, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path / "c", [source])
    model = StoredModel("tiny", tiny.imported.digest, tiny.imported.manifest, tiny.backend, cache)
    with model.stage(LayerRange(0, 3), 2, 0) as stage:
        before = {name: bits(tensor).clone() for name, tensor in stage.tensors.items()}
        (tmp_path / "c" / "verified" / tiny.imported.digest).unlink()
        source.spoil = 10**9
        with pytest.raises(DataLoss), cache.hold(select(tiny), None):
            pass
        for name, tensor in stage.tensors.items():
            assert torch.equal(bits(tensor), before[name]), name
    read, source.spoil = source.read_bytes, 0
    assert_whole(tiny, cache)
    assert source.read_bytes - read <= select(tiny, degree=2, rank=1).size_bytes


def test_a_source_that_sends_too_much_spoils_no_other_tile(
    tiny, source: Counting, tmp_path: Path
) -> None:
    with make_cache(tmp_path / "c", [source]).hold(select(tiny, degree=2, rank=1), None) as held:
        before = [Path(file).read_bytes() for file in held]
    cache = make_cache(tmp_path / "c", [Overlong(tiny.backend)])
    with pytest.raises(DataLoss, match="more"), cache.hold(select(tiny, degree=2), None):
        pass
    for file, data in zip(held, before, strict=True):
        after = Path(file).read_bytes()
        assert all(new == old for new, old in zip(after, data, strict=True) if old)
    assert_whole(tiny, make_cache(tmp_path / "c", [source]))


def test_what_was_good_of_a_source_that_sends_too_much_is_not_asked_for_again(
    tiny, source: Counting, tmp_path: Path
) -> None:
    source.error = Unavailable("nobody is to ask")
    assert_whole(tiny, make_cache(tmp_path / "c", [Overlong(tiny.backend), source]))


def test_a_peer_that_breaks_off_is_followed_up_where_it_stopped(
    smollm2: StoredModel, tmp_path: Path
) -> None:
    selection = Selection.of(smollm2.digest, smollm2.manifest, 0, 1)

    class Halting(Counting):
        def pieces(self, digest: str, start: int, stop: int) -> Pieces:
            for number, piece in enumerate(super().pieces(digest, start, stop)):
                if number == 20:
                    raise Unavailable("gone")
                yield piece

    peer, store = Halting(smollm2._backend), Counting(smollm2._backend)
    with make_cache(tmp_path / "c", [peer, store]).hold(selection, None):
        pass
    assert peer.read_bytes > 8 << 20
    assert peer.read_bytes + store.read_bytes < selection.size_bytes + (8 << 20)


def test_a_mapped_file_is_never_cut(tiny, source: Counting, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", [source])
    with cache.hold(select(tiny), None) as held, Path(held[0]).open("rb") as mapped:
        whole = tiny.imported.manifest.chunks[0]
        ends = whole.ends[:1]
        less = whole._replace(size_bytes=ends[0], ends=ends, tile_digests=whole.tile_digests[:32])
        manifest = replace(
            tiny.imported.manifest, chunks=(less, *tiny.imported.manifest.chunks[1:])
        )
        wanted = replace(select(tiny), digest="f" * 64, manifest=manifest, ranges=[Range(0, (0,))])
        with cache.hold(wanted, None) as other:
            assert other[0].inode != held[0].inode
        assert os.fstat(mapped.fileno()).st_size == whole.size_bytes


def test_a_whole_file_is_closed_to_writers(tiny, source: Counting, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", [source])
    with cache.hold(select(tiny, degree=2), None) as held:
        assert all(Path(file).stat().st_mode & 0o200 for file in held[:1])
    with cache.hold(select(tiny), None) as held:
        assert not any(Path(file).stat().st_mode & 0o222 for file in held)


def test_memory_that_has_a_slice_asks_nobody(tiny, source: Counting, tmp_path: Path) -> None:
    disk = make_cache(tmp_path / "disk", [source])
    tiers = TieredResidence(disk, disk.root, tmp_path / "memory", ROOMY, [source])
    with tiers.hold(select(tiny, 0, 2), None):
        pass
    source.error = Unavailable("away")
    assert all(disk.forget(digest) for digest in digests_of(tiny, 0, 2))
    with tiers.hold(select(tiny, 0, 2), None) as held:
        assert all(tmp_path / "memory" in Path(file).parents for file in held)


def test_one_damaged_tile_on_the_disk_costs_that_tile_alone(
    tiny, source: Counting, tmp_path: Path
) -> None:
    disk = make_cache(tmp_path / "disk", [source])
    with disk.hold(select(tiny), None) as held:
        path = Path(held[1])
    chunk = tiny.imported.manifest.chunks[1]
    rot(path)
    read = source.read_bytes
    tiers = TieredResidence(disk, disk.root, tmp_path / "memory", ROOMY, [source])
    assert_whole(tiny, tiers)
    assert 0 < source.read_bytes - read <= chunk.size_bytes
    kept = {file.name for file in (tmp_path / "disk").glob("objects/??/*")}
    assert kept == {c.digest for c in tiny.imported.manifest.chunks} - {chunk.digest}


def test_progress_counts_the_slice_up_to_its_end(tiny, source: Counting, tmp_path: Path) -> None:
    disk = make_cache(tmp_path / "disk", [source])
    tiers = TieredResidence(disk, disk.root, tmp_path / "memory", ROOMY, [source])
    for residence in (disk, tiers, LocalResidence(tiny.root)):
        for end in (1, 3, 3):
            seen: list[tuple[int, int]] = []
            with residence.hold(select(tiny, 0, end), lambda *pair, seen=seen: seen.append(pair)):
                pass
            assert seen == sorted(seen)
            assert len({total for _, total in seen}) == 1
            assert seen[-1][0] == seen[-1][1] >= select(tiny, 0, end).size_bytes


def test_progress_counts_what_another_writer_has_brought(tiny, tmp_path: Path) -> None:
    gate = Gate(tiny.backend, digests_of(tiny, 1, 2)[-1])
    filling = threading.Thread(target=assert_whole, args=(tiny, make_cache(tmp_path / "c", [gate])))
    filling.start()
    assert gate.reached.wait(60)
    seen: list[tuple[int, int]] = []

    def progress(done_bytes: int, total_bytes: int) -> None:
        seen.append((done_bytes, total_bytes))
        gate.go.set()

    try:
        with make_cache(tmp_path / "c", [tiny.backend]).hold(select(tiny, 1, 2), progress):
            assert seen[-1][0] == seen[-1][1] == select(tiny, 1, 2).size_bytes
    finally:
        gate.go.set()
        filling.join()


def test_memory_asks_no_peer_for_what_the_disk_below_has(tiny, tmp_path: Path) -> None:
    peers = [Counting(tiny.backend), Counting(tiny.backend)]
    sources = [*peers, tiny.backend]
    disk = make_cache(tmp_path / "disk", sources)
    tiers = TieredResidence(disk, disk.root, tmp_path / "memory", ROOMY, sources)
    assert_whole(tiny, tiers)
    assert sum(peer.read_bytes for peer in peers) == select(tiny).size_bytes
