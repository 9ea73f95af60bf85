from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
from shuntserve.engine.v1 import engine_pb2
from tokenizers import Tokenizer

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.common.generation import GenerationRequest, LayerRange, ModelRef, Sampling
from services.common.nodes import StageSpec
from services.engine.backend import HiddenDtype
from services.engine.core.memory import Memory
from services.engine.native.loader import NativeLoader, NativeOptions
from services.model.config import parse_config
from services.model.tensors import stage_shapes
from services.tensorstore.client import StageWeights, StoredModel, open_store
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import DEFAULT_MODEL, default_source, open_source
from tests.contract.engine.layouts import check_layouts
from tests.contract.engine.rig import Rig, Stream, generate

QUESTION = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("store")
    checkpoint = open_source(default_source())
    try:
        import_checkpoint(checkpoint, DirectoryBackend(path), DEFAULT_MODEL)
    finally:
        checkpoint.close()
    return path


@pytest.fixture(scope="module")
def tokenizer(store: Path) -> Tokenizer:
    files = open_store(str(store)).model(DEFAULT_MODEL).tokenizer_files()
    return Tokenizer.from_str(files["tokenizer.json"].decode())


@pytest.fixture
def model(store: Path) -> ModelRef:
    return ModelRef(DEFAULT_MODEL, open_store(str(store)).model(DEFAULT_MODEL).digest)


def _requests(tokenizer: Tokenizer, model: ModelRef, layout: str) -> list[GenerationRequest]:
    questions = [
        "What is the capital of France?",
        "Name three rivers.",
        "Tell me about the sea, at length.",
        "Who are you?",
    ]
    return [
        GenerationRequest(
            f"{layout}-{i}",
            model,
            tuple(tokenizer.encode(QUESTION.format(question)).ids),
            Sampling(40, temperature=0.8 * (i % 2), seed=i, eos_token_ids=(2,), top_logprobs=2),
        )
        for i, question in enumerate(questions)
    ]


async def test_a_real_model_says_the_same_in_every_layout_alone_and_replayed(
    store: Path, tokenizer: Tokenizer, model: ModelRef
) -> None:
    options = NativeOptions(str(store), "bf16", "cpu", 1, None)
    said = await check_layouts(
        lambda: NativeLoader(options),
        model,
        30,
        ([], [18], [9, 20]),
        lambda layout: _requests(tokenizer, model, layout),
        replayed_at=(1, 17),
    )
    assert "Paris" in tokenizer.decode(said[0])


async def test_a_real_node_prepares_its_next_range_while_it_serves(
    store: Path,
    tokenizer: Tokenizer,
    model: ModelRef,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From [0, 12) [12, 30) to [0, 20) [20, 30) beside a stream: every layer is read once by each
    node, no step waits for the load, no id differs, and the switch reads nothing."""
    read = _count_reads(monkeypatch)
    prompt = tuple(tokenizer.encode(QUESTION.format("Tell me a long story.")).ids)
    asked = GenerationRequest("g", model, prompt, Sampling(400, temperature=0.0))
    async with AsyncExitStack() as stack:
        rig = Rig(stack, model, layer_count=30)
        options = NativeOptions(str(store), "bf16", "cpu", 1, None)
        workers = [
            await rig.worker(loader=NativeLoader(options), progress_s=30.0) for _ in range(3)
        ]
        alone, serving = workers[0], workers[1:]
        await rig.form([alone], [], "f")
        await rig.form(serving, [12], "f1")
        read.clear()
        stream = generate(serving[0], asked, "f1")
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 8)
        arrivals: list[float] = []

        def arrived(_: Stream) -> bool:
            arrivals.append(time.perf_counter())
            return holding.done() or len(stream.ids[0]) >= 300

        holding = asyncio.gather(
            rig.hold(serving[0], (0, 12), (0, 20)), rig.hold(serving[1], (12, 30), (20, 30))
        )
        await stream.until(arrived)
        prepared = await holding
        gaps_s = sorted(after - before for before, after in pairwise(arrivals))
        with capsys.disabled():
            print(
                f"\n{len(gaps_s)} frames beside the load: median {gaps_s[len(gaps_s) // 2]:.3f} s, "
                f"longest {gaps_s[-1]:.3f} s"
            )
        assert len(gaps_s) >= 3
        assert all(stage.held for answer in prepared for stage in answer.stages)
        assert read == _stored_bytes(store, (12, 20))
        await serving[0].stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
        await serving[1].stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
        await stream.end()
        held = stream.ids[0]
        await rig.join(serving, [20], "f2")
        rest = generate(serving[0], asked, "f2", epoch=2, held=held, start=len(held))
        await rest.until(lambda s: len(s.ids.get(0, [])) >= 8)
        assert read == _stored_bytes(store, (12, 20))
        ids = [*held, *rest.ids[0]]
        reference = await generate(alone, asked, "f").until(
            lambda s: len(s.ids.get(0, [])) >= len(ids)
        )
        assert ids == reference.ids[0][: len(ids)]


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that stages take from the store from now on, by tensor."""
    read: Counter[str] = Counter()
    stage = StoredModel.stage

    @contextmanager
    def counting(self: StoredModel, *args: Any, **more: Any) -> Iterator[StageWeights]:
        with stage(self, *args, **more) as weights:
            read.update({name: tensor.nbytes for name, tensor in weights.tensors.items()})
            yield weights

    monkeypatch.setattr(StoredModel, "stage", counting)
    return read


def _stored_bytes(store: Path, layers: tuple[int, int]) -> dict[str, int]:
    config = parse_config(open_store(str(store)).model(DEFAULT_MODEL).config)
    return {name: 2 * prod(s) for name, s in stage_shapes(config, range(*layers)).items()}


async def test_a_real_node_without_room_has_its_store_fetch_the_next_range(
    store: Path, model: ModelRef
) -> None:
    async with AsyncExitStack() as stack:
        rig = Rig(stack, model, layer_count=30)
        loader = NativeLoader(NativeOptions(str(store), "bf16", "cpu", 1, None))
        worker = await rig.worker(loader=loader, memory_bytes=100 << 20)
        answer = await rig.hold(worker, (1, 11), (11, 21))
        assert [(s.held, s.cached) for s in answer.stages] == [(True, False), (False, True)]
        stored_bytes = sum(_stored_bytes(store, (1, 21)).values())
        assert answer.loaded_bytes == answer.total_bytes == stored_bytes
        switched = await rig.hold(worker, (11, 21))
        assert switched.stages[0].held


def test_a_cache_is_as_large_as_memory_allows(store: Path, model: ModelRef) -> None:
    loader = NativeLoader(NativeOptions(str(store), "bf16", "cpu", 1, None))
    size = loader.measure(model, StageSpec(LayerRange(20, 22)))

    def blocks(memory_bytes: int) -> int:
        return Memory(memory_bytes, 4096 // 16).kv_blocks(size, [size])

    layer_bytes = 2 * (576 * (576 * 2 + 192 * 2 + 1536 * 3) + 2 * 576)
    block_bytes = 2 * 2 * 192 * 2 * 16
    assert blocks(1 << 30) == 4096 // 16
    assert blocks(2 * layer_bytes + 10 * block_bytes) == 10
    with pytest.raises(FailedPrecondition, match=r"leave no room for a KV cache in .*: 1 bytes"):
        Memory(2 * layer_bytes + block_bytes - 1, 256).fitting([size], None)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_a_stage_holds_fits_into_its_memory(
    store: Path, model: ModelRef, dtype: HiddenDtype
) -> None:
    """All layers in one stage: the tied matrix is held twice, as embedding and packed as head."""
    memory_bytes, embedding = 800 << 20, 49152 * 576
    loader = NativeLoader(NativeOptions(str(store), dtype, "cpu", 1, None))
    size = loader.measure(model, StageSpec(LayerRange(0, 30)))
    kv_blocks = Memory(memory_bytes, 1 << 16).kv_blocks(size, [size])
    stage = loader.load(model, StageSpec(LayerRange(0, 30)), lambda *_: None)
    try:
        item_bytes = 2 if dtype == "bf16" else 4
        cache_bytes = kv_blocks * 16 * 30 * 2 * 192 * item_bytes
        packed_bytes = sum(layer.packed_bytes for layer in stage.resident_layers().values())
        held_bytes = packed_bytes + embedding * item_bytes + cache_bytes
    finally:
        stage.close()
    assert 0.98 * memory_bytes < held_bytes <= memory_bytes


def test_weights_that_are_not_there_are_a_clear_error(store: Path, model: ModelRef) -> None:
    def load(where: str, asked: ModelRef, layers: LayerRange) -> None:
        loader = NativeLoader(NativeOptions(where, "bf16", "cpu", 1, None))
        loader.measure(asked, StageSpec(layers))

    with pytest.raises(Unavailable):
        load("", model, LayerRange(0, 2))
    with pytest.raises(NotFound):
        load(str(store), ModelRef("another", ""), LayerRange(0, 2))
    with pytest.raises(InvalidArgument):
        load(str(store), model, LayerRange(28, 31))
