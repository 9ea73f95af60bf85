"""Long steps leave short calls alone, and reads leave the link to others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb

from services.common.errors import ResourceExhausted
from services.tensorstore.__main__ import build_servicer
from services.tensorstore.cache.held import HeldChunks
from services.tensorstore.cache.residence import HeldFile, Progress
from services.tensorstore.format.slices import Selection
from services.tensorstore.link_share import LinkShare
from services.tensorstore.node import CachePlan, NodeStore, build
from services.tensorstore.service import TensorStoreServicer
from services.tensorstore.settings import TensorStoreSettings

STEPS = 2
CONTEXT: Any = None


class Stuck:
    """A residence that waits for its source until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[HeldFile]]:
        self.loop.call_soon_threadsafe(self.begun.put_nowait, None)
        assert self.go.wait(60)
        yield []


@pytest.fixture
async def stuck() -> Stuck:
    return Stuck()


@pytest.fixture
async def servicer(tiny, stuck: Stuck) -> TensorStoreServicer:
    node = NodeStore(tiny.backend, stuck, HeldChunks([]), tiny.backend)
    return TensorStoreServicer(node, LinkShare(1e9), max_steps=STEPS, hold_s=10)


async def test_steps_that_wait_leave_the_other_calls_their_threads(
    tiny, servicer: TensorStoreServicer, stuck: Stuck
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    reference = common_pb2.ModelRef(digest=tiny.imported.digest)
    request = pb.PrefetchRequest(
        slice=pb.Slice(model=reference, layers=common_pb2.LayerRange(start=0, end=1))
    )

    async def prefetch() -> int:
        return len([answer async for answer in servicer.Prefetch(request, CONTEXT)])

    steps = [asyncio.ensure_future(prefetch()) for _ in range(STEPS)]
    try:
        async with asyncio.timeout(60):
            for _ in range(STEPS):
                await stuck.begun.get()
            describe = pb.DescribeRequest(model=reference)
            answer = await servicer.Describe(describe, CONTEXT)
            assert answer.summary.layers == 3
            with pytest.raises(ResourceExhausted, match="steps"):
                await prefetch()
    finally:
        stuck.go.set()
        await asyncio.gather(*steps)


class Recording:
    """A share of the link that lets everything pass and remembers it."""

    def __init__(self) -> None:
        self.sent_bytes = 0

    def reserve(self, now_s: float, size_bytes: int) -> float:
        self.sent_bytes += size_bytes
        return 0.0


@pytest.mark.parametrize("cached_only", [True, False])
async def test_every_read_takes_from_the_share_of_the_link(tiny, cached_only: bool) -> None:
    share = Recording()
    node = build(tiny.backend, CachePlan())
    servicer = TensorStoreServicer(node, share, max_steps=1, hold_s=10)  # type: ignore[arg-type]
    chunk = tiny.imported.manifest.chunks[0]
    request = pb.ReadRequest(digest=chunk.digest, length=chunk.size_bytes, cached_only=cached_only)
    data = b"".join([answer.data async for answer in servicer.Read(request, CONTEXT)])
    assert data == tiny.backend.path(chunk.digest).read_bytes()
    assert share.sent_bytes == chunk.size_bytes


def test_the_share_is_the_one_that_the_settings_name(tiny) -> None:
    chosen = TensorStoreSettings(
        store=str(tiny.root), link_bytes_per_s=64 << 20, peer_share=0.25, _env_file=None
    )
    share = build_servicer(chosen).share
    assert share.reserve(0.0, 4 << 20) == 0
    assert share.reserve(0.0, 16 << 20) == pytest.approx(1.0)


async def test_a_damaged_model_does_not_hide_the_others(tiny, caplog: Any) -> None:
    (tiny.backend.root / "models" / "rotten").write_text("0" * 64 + "\n")
    node = build(tiny.backend, CachePlan())
    servicer = TensorStoreServicer(node, Recording(), max_steps=1, hold_s=10)  # type: ignore
    answer = await servicer.List(pb.ListRequest(), CONTEXT)
    assert [model.model.model_id for model in answer.models] == ["tiny"]
    assert [record.model for record in caplog.records] == ["rotten"]
