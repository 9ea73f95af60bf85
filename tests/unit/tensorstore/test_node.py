"""A node sends its peers what it verified, and finds what rots in its caches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import NotFound, OutOfRange
from services.tensorstore import node as node_module
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.format.slices import Selection
from services.tensorstore.node import CachePlan, NodeStore, build
from tests.checkpoints import rot


def make_node(tiny, root: Path) -> NodeStore:
    plan = CachePlan(directory=root / "disk", memory_directory=root / "memory")
    return build(tiny.backend, plan)


def held_by(tiny, root: Path, degree: int, rank: int) -> Selection:
    """A slice that a node's caches hold, and nothing else."""
    selection = make_node(tiny, root).select("tiny", "", 0, 3, degree, rank)
    with make_node(tiny, root).residence.hold(selection, None):
        return selection


def test_verified_tiles_are_sent_and_no_others(tiny, tmp_path: Path) -> None:
    selection = held_by(tiny, tmp_path, 2, 1)
    node = make_node(tiny, tmp_path)  # another process: it knows what the first has left
    for wanted in selection.ranges:
        chunk = selection.manifest.chunks[wanted.chunk]
        whole = tiny.backend.path(chunk.digest).read_bytes()
        for tile in range(len(chunk.ends)):
            start, stop = chunk.tile_bytes(tile)
            if tile in wanted.tiles:
                pieces = node.read(chunk.digest, start, stop, cached_only=True)
                assert b"".join(pieces) == whole[start:stop]
            else:  # it may share its blocks with one that is here
                with pytest.raises(NotFound):
                    node.read(chunk.digest, start, stop, cached_only=True)
                pieces = node.read(chunk.digest, start, stop, cached_only=False)
                assert b"".join(pieces) == whole[start:stop]


def test_a_peer_is_told_that_a_part_is_here(tiny, tmp_path: Path) -> None:
    selection = held_by(tiny, tmp_path, 2, 1)
    node = make_node(tiny, tmp_path)
    chunk = max(selection.manifest.chunks, key=lambda chunk: len(chunk.ends))
    with pytest.raises(OutOfRange):
        node.read(chunk.digest, 0, chunk.size_bytes, cached_only=True)
    pieces = node.read(chunk.digest, 0, chunk.size_bytes, cached_only=False)
    assert b"".join(pieces) == tiny.backend.path(chunk.digest).read_bytes()


def test_what_is_in_doubt_is_not_sent(tiny, tmp_path: Path) -> None:
    selection = held_by(tiny, tmp_path, 1, 0)
    node, chunk = make_node(tiny, tmp_path), selection.manifest.chunks[0]
    assert node.read(chunk.digest, 0, 64, cached_only=True)
    for path in tmp_path.glob(f"*/objects/??/{chunk.digest}"):
        path.chmod(0o400)  # the bytes are the same, and nobody knows
    with pytest.raises(NotFound):
        node.read(chunk.digest, 0, 64, cached_only=True)


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_rot_in_a_cache_is_found_and_mended(tiny, tmp_path: Path, cache: str) -> None:
    selection = held_by(tiny, tmp_path, 1, 0)
    node, chunk = make_node(tiny, tmp_path), selection.manifest.chunks[1]
    seen: list[tuple[int, int]] = []
    found = node.verify(selection.digest, lambda *pair: seen.append(pair))
    assert (list(found.objects), dict(found.files)) == ([], {})
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    path = tmp_path / cache / "objects" / chunk.digest[:2] / chunk.digest
    rot(path, chunk.size_bytes - 1)
    found = node.verify(selection.digest, lambda *_: None)
    assert (list(found.objects), dict(found.files)) == ([], {str(path): chunk.digest})
    again = make_node(tiny, tmp_path)
    root = ChunkCache(tmp_path / cache, 1 << 30, [tiny.backend])
    for residence in (again.residence, root):
        with residence.hold(selection, None):
            pass
    assert path.read_bytes() == tiny.backend.path(chunk.digest).read_bytes()
    assert dict(again.verify(selection.digest, lambda *_: None).files) == {}


def test_damage_in_the_store_is_told_apart(tiny, tmp_path: Path) -> None:
    selection = held_by(tiny, tmp_path, 1, 0)
    stored = tiny.backend.path(selection.manifest.chunks[0].digest)
    stored.chmod(0o644)
    stored.write_bytes(b"x" + stored.read_bytes()[1:])
    found = make_node(tiny, tmp_path).verify(selection.digest, lambda *_: None)
    assert list(found.objects) == [stored.name]
    assert dict(found.files) == {}


@pytest.fixture
def restless_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
def test_more_manifests_than_are_kept_may_be_asked_for_at_once(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "MANIFESTS_KEPT", 2)
    monkeypatch.setattr(node_module, "read_manifest", lambda *_: (b"", tiny.imported.manifest))
    node = build(tiny.backend, CachePlan())

    def ask(first: int) -> None:
        for number in range(first, first + 8000):
            node.manifest("", f"{number % 8:064x}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(node._manifests) <= 2


def test_weights_that_are_handed_on_displace_nothing_that_is_kept(tiny, tmp_path: Path) -> None:
    node = make_node(tiny, tmp_path)
    digest, _, manifest = node.manifest("tiny")
    for file in manifest.files.values():
        node.read(file.digest, 0, file.size_bytes, cached_only=False)
    for chunk in manifest.chunks:
        assert node.read(chunk.digest, 0, chunk.size_bytes, cached_only=False)
    kept = {path.name for path in (tmp_path / "disk" / "kept").iterdir()}
    assert kept == {digest, *(file.digest for file in manifest.files.values())}
