"""The gRPC edge of the tensor store: parse, call the node, build the reply."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb
from shuntserve.tensorstore.v1 import tensorstore_pb2_grpc as rpc

from services.common.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from services.model.backends import backends_of
from services.tensorstore.cache.residence import Progress
from services.tensorstore.format.manifest import Manifest
from services.tensorstore.format.names import check_model_name
from services.tensorstore.format.slices import Selection
from services.tensorstore.link_share import LinkShare
from services.tensorstore.node import NodeStore

_log = logging.getLogger(__name__)
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

READ_LIMIT_BYTES = 64 << 20
AHEAD_BYTES = 4 << 20
PROGRESS_INTERVAL_S = 0.1


class TensorStoreServicer(rpc.TensorStoreServiceServicer):
    """Serves one node's store; long steps run in threads, a bounded number at a time."""

    def __init__(self, node: NodeStore, share: LinkShare, *, max_steps: int, hold_s: float) -> None:
        """All that readers of other nodes are sent keeps to the share of the link."""
        self._node = node
        self.share = share
        self._max_steps = max_steps
        # Threads of their own: steps that wait for a source must not keep a Read from its thread.
        self._steps = ThreadPoolExecutor(max_steps, "step")
        self._running = 0
        self._hold_s = hold_s

    async def Import(
        self, request: pb.ImportRequest, context: Context
    ) -> AsyncIterator[pb.ImportResponse]:
        name = check_model_name(request.name)
        work = partial(self._node.import_source, request.source, name)
        async for event in self._step(work):
            if isinstance(event, pb.TransferProgress):
                yield pb.ImportResponse(progress=event)
            else:
                yield pb.ImportResponse(
                    imported=common_pb2.ModelRef(model_id=name, digest=event.digest)
                )

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        return await asyncio.to_thread(self._list)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        wanted = request.model
        digest, data, manifest = await asyncio.to_thread(
            self._node.manifest, wanted.model_id, wanted.digest
        )
        summary = _summary(wanted.model_id, digest, manifest)
        parts = () if manifest.is_tiled else manifest.part_bytes()
        served = backends_of(manifest.config, tiled=manifest.is_tiled)
        return pb.DescribeResponse(
            summary=summary, manifest=data, part_bytes=parts, backends=served.names
        )

    async def Prefetch(
        self, request: pb.PrefetchRequest, context: Context
    ) -> AsyncIterator[pb.PrefetchResponse]:
        selection = await self._selection(request.slice)
        async for event in self._step(partial(self._bring, selection)):
            if isinstance(event, pb.TransferProgress):
                yield pb.PrefetchResponse(progress=event)

    async def Open(
        self, request: pb.OpenRequest, context: Context
    ) -> AsyncIterator[pb.OpenResponse]:
        selection = await self._selection(request.slice)
        held, gone = ExitStack(), threading.Event()

        def enter(progress: Progress) -> pb.OpenedSlice:
            files = held.enter_context(self._node.residence.hold(selection, progress))
            if gone.is_set():  # the caller left in mid-transfer
                held.close()
            return pb.OpenedSlice(
                digest=selection.digest,
                paths=[os.path.abspath(file) for file in files],  # noqa: PTH100
                inodes=[file.inode for file in files],
            )

        try:
            async for event in self._step(enter):
                if isinstance(event, pb.TransferProgress):
                    yield pb.OpenResponse(progress=event)
                    continue
                yield pb.OpenResponse(opened=event)
            # the engine maps the files and ends the call; one that forgets does not hold for ever
            async with asyncio.timeout(self._hold_s):
                await asyncio.Event().wait()
        except TimeoutError:
            return
        finally:
            gone.set()
            held.close()

    async def Read(
        self, request: pb.ReadRequest, context: Context
    ) -> AsyncIterator[pb.ReadResponse]:
        if not 1 <= request.length <= READ_LIMIT_BYTES or request.start >= 1 << 46:
            raise InvalidArgument(f"length must be 1 to {READ_LIMIT_BYTES}", field="length")
        end = request.start + request.length
        starts = range(request.start, end, AHEAD_BYTES)
        coming = asyncio.ensure_future(self._frames(request, starts[0], end))
        try:
            for number in range(len(starts)):
                frames = await coming
                if number + 1 < len(starts):
                    coming = asyncio.ensure_future(self._frames(request, starts[number + 1], end))
                for frame in frames:
                    wait_s = self.share.reserve(time.monotonic(), len(frame))
                    if wait_s > 0:
                        await asyncio.sleep(wait_s)
                    yield pb.ReadResponse(data=frame)
        finally:
            coming.cancel()

    async def Verify(
        self, request: pb.VerifyRequest, context: Context
    ) -> AsyncIterator[pb.VerifyResponse]:
        wanted = request.model
        digest, _, _ = await asyncio.to_thread(self._node.manifest, wanted.model_id, wanted.digest)
        async for event in self._step(partial(self._node.verify, digest)):
            if isinstance(event, pb.TransferProgress):
                yield pb.VerifyResponse(progress=event)
                continue
            files = [pb.DamagedFile(digest=d, path=path) for path, d in event.files.items()]
            yield pb.VerifyResponse(result=pb.VerifyResult(damaged=event.objects, files=files))

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        existed = await asyncio.to_thread(self._node.delete, request.name)
        return pb.DeleteResponse(existed=existed)

    def _list(self) -> pb.ListResponse:
        """A model that is damaged, or withdrawn meanwhile, does not hide the others."""
        answer = pb.ListResponse()
        for name in self._node.names():
            try:
                digest, _, manifest = self._node.manifest(name)
            except (DataLoss, NotFound) as error:
                _log.error("model not listed", extra={"model": name, "why": error.message})
                continue
            answer.models.append(_summary(name, digest, manifest))
        return answer

    async def _selection(self, wanted: pb.Slice) -> Selection:
        return await asyncio.to_thread(
            self._node.select,
            wanted.model.model_id,
            wanted.model.digest,
            wanted.layers.start,
            wanted.layers.end,
            wanted.tp_degree or 1,
            wanted.tp_rank,
        )

    def _bring(self, selection: Selection, progress: Progress) -> None:
        with self._node.residence.hold(selection, progress):
            return

    async def _frames(self, request: pb.ReadRequest, start: int, end: int) -> list[bytes]:
        return await asyncio.to_thread(
            self._node.read,
            request.digest,
            start,
            min(start + AHEAD_BYTES, end),
            cached_only=request.cached_only,
        )

    async def _step(self, work: Callable[[Progress], T]) -> AsyncIterator[Any]:
        """Runs a long step in a thread: its progress, when it moves, and at last its result."""
        if self._running >= self._max_steps:
            raise ResourceExhausted(f"{self._max_steps} long steps run already", field="max_steps")
        latest = (0, 0)

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal latest
            latest = (done_bytes, total_bytes)

        self._running += 1
        context = contextvars.copy_context()
        task = asyncio.get_running_loop().run_in_executor(
            self._steps, partial(context.run, work, progress)
        )
        task.add_done_callback(self._ended)
        shown = latest
        while True:
            await asyncio.wait({task}, timeout=PROGRESS_INTERVAL_S)
            ended = task.done()  # asked before progress, of which the last must be seen
            if latest != shown:
                shown = latest
                yield pb.TransferProgress(done_bytes=shown[0], total_bytes=shown[1])
            if ended:
                break
        yield task.result()

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._running -= 1
        if not task.cancelled():
            task.exception()  # the caller may be gone: its error has no other reader


def _summary(name: str, digest: str, manifest: Manifest) -> pb.ModelSummary:
    return pb.ModelSummary(
        model=common_pb2.ModelRef(model_id=name, digest=digest),
        layers=manifest.tiling.layers,
        size_bytes=manifest.size_bytes,
        tp_degrees=manifest.tiling.degrees(),
    )
