"""Engines over real gRPC say the same however a model is laid out over them, whatever computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from shuntserve.engine.v1 import engine_pb2

from services.common.generation import GenerationRequest, ModelRef
from services.engine.stages import StageLoader
from tests.contract.engine.rig import Rig, Worker, generate

Requests = Callable[[str], list[GenerationRequest]]


async def said(head: Worker, requests: list[GenerationRequest]) -> list[list[int]]:
    """What a head answers to all of them at once."""
    streams = await asyncio.gather(*(generate(head, r, "f").end() for r in requests))
    assert all(s.closed == engine_pb2.CLOSE_REASON_FINISHED for s in streams)
    return [stream.ids[0] for stream in streams]


async def check_layouts(
    loader: Callable[[], StageLoader],
    model: ModelRef,
    layer_count: int,
    layouts: Sequence[Sequence[int]],
    requests: Requests,
    *,
    replayed_at: Sequence[int],
) -> list[list[int]]:
    """The ids of the requests, which are named anew for each layout, a tuple of the layers where
    stages are cut; in the second one each generation is replayed at some of its ids, too."""
    found: list[list[list[int]]] = []
    for place, cuts in enumerate(layouts):
        async with AsyncExitStack() as stack:
            rig = Rig(stack, model, layer_count=layer_count)
            workers = [
                await rig.worker(loader=loader(), progress_s=30.0) for _ in range(len(cuts) + 1)
            ]
            await rig.form(workers, cuts, "f")
            asked = requests(f"layout{place}")
            found.append(await said(workers[0], asked))
            for worker, start, end in zip(workers, [0, *cuts], [*cuts, layer_count], strict=True):
                description = await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
                layers = {
                    int(tensor.name.split(".")[2])
                    for tensor in description.tensors
                    if tensor.name.startswith("model.layers.")
                }
                assert layers == set(range(start, end))
                assert description.stages[0].numerics_class.startswith("exact-")
            for cut in replayed_at if place == 1 else ():
                for one, ids in zip(asked, found[0], strict=True):
                    again = generate(workers[0], one, "f", epoch=cut + 1, held=ids[:cut], start=cut)
                    assert ids[:cut] + (await again.end()).ids.get(0, []) == ids
    assert all(ids == found[0] for ids in found)
    return found[0]
