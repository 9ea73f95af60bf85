from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from shuntserve.engine.v1 import engine_pb2
from tokenizers import Tokenizer

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.common.generation import GenerationRequest, LayerRange, ModelRef, Sampling
from services.engine.backend import HiddenDtype
from services.engine.native.loader import NativeLoader, NativeOptions
from services.tensorstore.client import open_store
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import DEFAULT_MODEL, default_source, open_source
from tests.contract.engine.rig import Rig, Worker, generate

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


async def _texts(head: Worker, requests: list[GenerationRequest]) -> list[list[int]]:
    streams = await asyncio.gather(*(generate(head, r, "f").end() for r in requests))
    assert all(s.closed == engine_pb2.CLOSE_REASON_FINISHED for s in streams)
    return [stream.ids[0] for stream in streams]


async def test_a_real_model_says_the_same_in_every_layout_alone_and_replayed(
    store: Path, tokenizer: Tokenizer, model: ModelRef
) -> None:
    options = NativeOptions(str(store), 1 << 30, 4096, "bf16", "cpu", 1, None)
    said: list[list[list[int]]] = []
    for cuts in ([], [18], [9, 20]):
        async with AsyncExitStack() as stack:
            rig = Rig(stack, model, layer_count=30)
            loaders = [NativeLoader(options) for _ in range(len(cuts) + 1)]
            workers = [await rig.worker(loader=loader, progress_s=30.0) for loader in loaders]
            await rig.form(workers, cuts, "f")
            requests = _requests(tokenizer, model, f"cut{len(cuts)}")
            said.append(await _texts(workers[0], requests))
            for worker, start, end in zip(workers, [0, *cuts], [*cuts, 30], strict=True):
                description = await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=5)
                layers = {
                    int(tensor.name.split(".")[2])
                    for tensor in description.tensors
                    if tensor.name.startswith("model.layers.")
                }
                assert layers == set(range(start, end))
                assert description.numerics_class.startswith("exact-")
            if cuts == [18]:
                for cut in (1, 17):
                    for i, ids in enumerate(said[0]):
                        alone = generate(
                            workers[0], requests[i], "f", epoch=cut + 1, held=ids[:cut], start=cut
                        )
                        assert ids[:cut] + (await alone.end()).ids.get(0, []) == ids
    assert said[0] == said[1] == said[2]
    assert "Paris" in tokenizer.decode(said[0][0])


def test_a_cache_is_as_large_as_memory_allows(store: Path, model: ModelRef) -> None:
    read: list[tuple[int, int]] = []

    def blocks(memory_bytes: int) -> int:
        read.clear()
        options = NativeOptions(str(store), memory_bytes, 4096, "bf16", "cpu", 1, None)
        stage = NativeLoader(options).load(model, LayerRange(20, 22), lambda *at: read.append(at))
        try:
            return stage.facts.kv_blocks
        finally:
            stage.close()

    layer_bytes = 2 * (576 * (576 * 2 + 192 * 2 + 1536 * 3) + 2 * 576)
    block_bytes = 2 * 2 * 192 * 2 * 16
    assert blocks(1 << 30) == 4096 // 16
    assert blocks(2 * layer_bytes + 10 * block_bytes) == 10
    with pytest.raises(FailedPrecondition, match="leave no room for a KV cache"):
        blocks(2 * layer_bytes + block_bytes - 1)
    assert read == [], "it is refused before any weight comes"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_a_stage_holds_fits_into_its_memory(
    store: Path, model: ModelRef, dtype: HiddenDtype
) -> None:
    """All layers in one stage: the tied matrix is held twice, as embedding and packed as head."""
    memory_bytes, embedding = 800 << 20, 49152 * 576
    options = NativeOptions(str(store), memory_bytes, 1 << 20, dtype, "cpu", 1, None)
    stage = NativeLoader(options).load(model, LayerRange(0, 30), lambda *_: None)
    try:
        item_bytes = 2 if dtype == "bf16" else 4
        cache_bytes = stage.facts.kv_blocks * 16 * 30 * 2 * 192 * item_bytes
        held_bytes = stage.packed_bytes + embedding * item_bytes + cache_bytes
    finally:
        stage.close()
    assert 0.98 * memory_bytes < held_bytes <= memory_bytes


def test_weights_that_are_not_there_are_a_clear_error(store: Path, model: ModelRef) -> None:
    def load(where: str, asked: ModelRef, layers: LayerRange) -> None:
        options = NativeOptions(where, 1 << 30, 4096, "bf16", "cpu", 1, None)
        NativeLoader(options).load(asked, layers, lambda *_: None)

    with pytest.raises(Unavailable):
        load("", model, LayerRange(0, 2))
    with pytest.raises(NotFound):
        load(str(store), ModelRef("another", ""), LayerRange(0, 2))
    with pytest.raises(InvalidArgument):
        load(str(store), model, LayerRange(28, 31))
