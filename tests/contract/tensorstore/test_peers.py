"""Stores that hold parts serve each other: each byte is sent once, and S3 sends only the rest."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from shuntserve.tensorstore.v1 import tensorstore_pb2_grpc as rpc

from services.common import channel_options
from services.common.channel_options import options
from services.common.errors import Unavailable
from services.common.generation import LayerRange
from services.common.roles import Role
from services.common.server import ErrorInterceptor
from services.tensorstore.cache.cache import ChunkCache
from services.tensorstore.client import StoredModel
from services.tensorstore.format.slices import Selection
from services.tensorstore.node import CachePlan, build
from services.tensorstore.places.remote import RemoteReader
from services.tensorstore.places.s3 import S3Backend
from services.tensorstore.service import TensorStoreServicer
from tests.checkpoints import bits, expected_slice

Part = tuple[int, int, int, int]  # layers, TP degree and rank
BY_RANK: list[Part] = [(0, 3, 2, 0), (0, 3, 2, 1)]
BY_LAYER: list[Part] = [(0, 1, 1, 0), (1, 2, 1, 0)]


class Sent:
    """Stands for the share of the link: every byte that a peer sends passes here."""

    def __init__(self) -> None:
        self.sent_bytes = 0

    def reserve(self, now_s: float, size_bytes: int) -> float:
        self.sent_bytes += size_bytes
        return 0.0


def select(stored: Any, part: Part) -> Selection:
    start, end, degree, rank = part
    return Selection.of(stored.imported.digest, stored.imported.manifest, start, end, degree, rank)


@asynccontextmanager
async def serving(
    stored: Any, endpoint: str, root: Path, parts: Sequence[Part]
) -> AsyncIterator[list[tuple[str, Sent]]]:
    """A service for each part, which is all that it holds."""
    peers: list[tuple[str, Sent]] = []
    async with AsyncExitStack() as stack:
        for number, part in enumerate(parts):
            node = build(S3Backend(stored.uri, endpoint), CachePlan(directory=root / f"p{number}"))
            await asyncio.to_thread(node.manifest, "tiny")
            with node.residence.hold(select(stored, part), None):
                pass
            sent = Sent()
            server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=options(64 << 20))
            servicer = TensorStoreServicer(node, sent, max_steps=1, hold_s=10)  # type: ignore
            rpc.add_TensorStoreServiceServicer_to_server(servicer, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            peers.append((f"127.0.0.1:{port}", sent))
        yield peers


def held_elsewhere(stored: Any, wanted: Selection, parts: Sequence[Part]) -> int:
    """Bytes of a slice that one of the parts holds."""
    held: dict[int, set[int]] = {}
    for part in parts:
        for found in select(stored, part).ranges:
            held.setdefault(found.chunk, set()).update(found.tiles)
    chunks = stored.imported.manifest.chunks
    return sum(
        chunks[found.chunk].span(sorted(set(found.tiles) & held.get(found.chunk, set())))
        for found in wanted.ranges
    )


@pytest.mark.parametrize("parts", [BY_RANK, BY_LAYER], ids=["ranks", "layers"])
@pytest.mark.parametrize("degree", [1, 2, 4, 8])
async def test_every_byte_is_sent_once(
    stored: Any, proxy: Any, s3_endpoint: str, tmp_path: Path, degree: int, parts: list[Part]
) -> None:
    endpoint, faults = proxy
    store = S3Backend(stored.uri, endpoint)
    async with serving(stored, s3_endpoint, tmp_path, parts) as peers:

        def load(rank: int) -> None:
            readers = [
                RemoteReader(address, Role.TENSORSTORE, cached_only=True) for address, _ in peers
            ]
            cache = ChunkCache(tmp_path / f"own{rank}", 1 << 30, [*readers, store])
            model = StoredModel(
                "tiny", stored.imported.digest, stored.imported.manifest, store, cache
            )
            with model.stage(LayerRange(0, 3), degree, rank) as stage:
                for name, tensor in stage.tensors.items():
                    wanted = expected_slice(stored.config, name, stored.tensors[name], degree, rank)
                    assert torch.equal(bits(tensor), bits(wanted)), name
            for reader in readers:
                reader.close()

        for rank in {0, degree - 1}:
            wanted = select(stored, (0, 3, degree, rank))
            from_peers = held_elsewhere(stored, wanted, parts)
            before = sum(sent.sent_bytes for _, sent in peers), faults.sent_bytes
            await asyncio.to_thread(load, rank)
            assert sum(sent.sent_bytes for _, sent in peers) - before[0] == from_peers
            assert faults.sent_bytes - before[1] == wanted.size_bytes - from_peers
        assert all(sent.sent_bytes for _, sent in peers) or degree > 1


def test_a_peer_that_froze_is_noticed_long_before_its_deadline(
    stored: Any, start_service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_options, "KEEPALIVE_INTERVAL_S", 0.2)
    monkeypatch.setattr(channel_options, "KEEPALIVE_TIMEOUT_S", 2.0)
    running = start_service(store=stored.directory)
    reader = RemoteReader(running.address, Role.TENSORSTORE, cached_only=True, timeout_s=20)
    chunk = stored.imported.manifest.chunks[0]
    assert list(reader.pieces(chunk.digest, 0, 64))
    running.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            list(reader.pieces(chunk.digest, 0, 64))
    finally:
        running.process.send_signal(signal.SIGCONT)
        reader.close()
