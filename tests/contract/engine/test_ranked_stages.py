"""Pipelines whose stages run on several ranks: what they say, and what a lost rank comes to."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from shuntserve.engine.v1 import engine_pb2

from services.common.errors import InvalidArgument
from services.common.generation import GenerationRequest, LayerRange, ModelRef, Sampling
from services.common.nodes import StageSpec
from services.engine.backend import HiddenDtype
from services.engine.core.memory import StageSize
from services.engine.native import kernels
from services.engine.native.loader import NativeLoader, NativeOptions
from services.engine.ranks.group import Patience
from services.engine.ranks.loader import RankedLoader
from services.engine.ranks.stage import RankedStage
from services.tensorstore.client import open_store
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, shapes_of, write_checkpoint
from tests.contract.engine.rig import Rig, Worker, generate, until

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="needs a compiler and a known CPU")
CONFIG = make_config(
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=5,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=512,
    max_position_embeddings=512,
)
PROMPTS = [[3 + (7 * i + 11 * n) % 500 for i in range(n)] for n in (1, 9, 33, 70)]
ALL_LAYERS, IDS = 5, 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ranked")
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: (0.2 * torch.randn(shape, generator=generator) + (len(shape) == 1)).bfloat16()
        for name, shape in shapes_of(CONFIG).items()
    }
    checkpoint = open_source(write_checkpoint(folder / "source", CONFIG, tensors))
    try:
        import_checkpoint(checkpoint, DirectoryBackend(folder / "store"), "random")
    finally:
        checkpoint.close()
    return folder / "store"


@pytest.fixture
def model(store: Path) -> ModelRef:
    return ModelRef("random", open_store(str(store)).model("random").digest)


def loader(store: Path, dtype: HiddenDtype = "bf16", step_s: float = 5.0) -> RankedLoader:
    options = NativeOptions(str(store), dtype, "cpu", 1, None)
    return RankedLoader(
        NativeLoader(options), partial(NativeLoader, options), patience=Patience(step_s)
    )


def requests(model: ModelRef, name: str) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            f"{name}-{i}",
            model,
            tuple(prompt),
            Sampling(IDS, temperature=0.9 * (i % 2), seed=i, logit_bias={7: 1.0}),
        )
        for i, prompt in enumerate(PROMPTS)
    ]


async def pipeline(
    rig: Rig,
    store: Path,
    degrees: list[int],
    dtype: HiddenDtype = "bf16",
    step_s: float = 5.0,
) -> list[Worker]:
    workers = [await rig.worker(loader=loader(store, dtype, step_s)) for _ in degrees]
    await rig.form(workers, [2] if len(degrees) > 1 else [], "f", degrees=degrees)
    return workers


async def said(head: Worker, asked: list[GenerationRequest]) -> list[list[int]]:
    streams = await asyncio.gather(*(generate(head, one, "f").end() for one in asked))
    assert all(s.closed == engine_pb2.CLOSE_REASON_FINISHED for s in streams)
    return [stream.ids[0] for stream in streams]


def ranked(worker: Worker) -> RankedStage:
    assert worker.engine is not None
    (held,) = worker.engine.stages.held
    assert isinstance(held.backend, RankedStage)
    return held.backend


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
async def test_a_stage_of_several_ranks_says_what_one_rank_says(
    rig: Rig, store: Path, model: ModelRef, dtype: HiddenDtype
) -> None:
    rig.model, rig.layer_count = model, ALL_LAYERS
    found, classes = [], set()
    for degrees in ([1], [1, 2], [4, 1] if dtype == "bf16" else [2, 1]):
        workers = await pipeline(rig, store, degrees, dtype)
        found.append(await said(workers[0], requests(model, f"of-{len(found)}")))
        for worker, degree in zip(workers, degrees, strict=True):
            described = await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
            (holding,) = described.stages
            assert holding.stage.tp_degree == degree
            classes.add(holding.numerics_class)
            assert {t.name.split(".")[2] for t in described.tensors if ".layers." in t.name} == {
                str(i) for i in range(holding.stage.layers.start, holding.stage.layers.end)
            }
    assert found[0] == found[1] == found[2]
    assert len({tuple(ids) for ids in found[0]}) == len(PROMPTS)
    assert len(classes) == 1
    assert classes.pop().startswith("exact-")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_rank_lost_under_load_ends_its_formation_and_its_node_holds_the_stage_again(
    rig: Rig, store: Path, model: ModelRef, sent: signal.Signals
) -> None:
    rig.model, rig.layer_count = model, ALL_LAYERS
    workers = await pipeline(rig, store, [1, 2], step_s=1.0)
    asked = requests(model, "lost")
    whole = await said(workers[0], asked)
    long = [
        GenerationRequest(f"long-{i}", model, one.prompt_ids, Sampling(400, temperature=0.0))
        for i, one in enumerate(asked)
    ]
    streams = [generate(workers[0], one, "f") for one in long]
    for stream in streams:
        await stream.until(lambda s: len(s.ids.get(0, ())) > 3)
    pids = ranked(workers[1]).pids
    os.kill(pids[1], sent)
    for stream in streams:
        assert (await stream.end()).closed == engine_pb2.CLOSE_REASON_DISSOLVED
    for worker in workers:
        await until(lambda worker=worker: _in_no_formation(worker))

    await until(lambda: _gone(pids))
    described = await workers[1].stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
    assert not described.stages
    await rig.form(workers, [2], "f2", degrees=[1, 2])
    again = requests(model, "again")
    streams = [generate(workers[0], one, "f2") for one in again]
    assert [(await stream.end()).ids[0] for stream in streams] == whole


async def _gone(pids: Sequence[int]) -> bool:
    return not any(map(_exists, pids))


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _in_no_formation(worker: Worker) -> bool:
    described = await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)
    return not described.formation_id


async def test_a_rank_lost_while_nobody_asks_ends_its_formation_too(
    rig: Rig, store: Path, model: ModelRef
) -> None:
    rig.model, rig.layer_count = model, ALL_LAYERS
    workers = await pipeline(rig, store, [2])
    os.kill(ranked(workers[0]).pids[0], signal.SIGKILL)
    await until(lambda: _in_no_formation(workers[0]))
    assert workers[0].engine is not None
    assert not workers[0].engine.stages.held


def test_the_memory_of_a_node_holds_all_its_ranks(store: Path, model: ModelRef) -> None:
    def measured(degree: int) -> StageSize:
        return loader(store).measure(model, StageSpec(LayerRange(0, ALL_LAYERS), degree))

    one, two = measured(1), measured(2)
    norms_bytes = 2 * CONFIG["hidden_size"] * 2
    assert two.layer_bytes[1] == one.layer_bytes[1] + norms_bytes
    assert two.kv_block_bytes == one.kv_block_bytes


@pytest.mark.parametrize(("degree", "why"), [(3, "8 attention heads"), (8, "at 1, 2, 4")])
def test_a_degree_that_cannot_be_is_refused_before_anything_is_loaded(
    store: Path, model: ModelRef, degree: int, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        loader(store).measure(model, StageSpec(LayerRange(0, 2), degree))
    assert refused.value.field == "tp_degree"
