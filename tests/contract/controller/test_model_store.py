from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
import transformers
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import channels
from services.common.errors import DataLoss
from services.controller import model_store
from services.controller.core.model_facts import ModelFacts
from services.controller.model_store import describe, newest_digest

CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "num_hidden_layers": 6,
}
FACTS = ModelFacts("tiny", "ab", 6, 100, 512, json.dumps(CONFIG))


class _Store(tensorstore_pb2_grpc.TensorStoreServiceServicer):
    def __init__(self) -> None:
        self.fails = 0
        self.manifest = json.dumps({"config": CONFIG}).encode()
        self.part_bytes: tuple[int, ...] = ()
        self.versions = ["ab"]
        """Digests under the name, the newest last."""

    async def Describe(self, request: Any, context: Any) -> Any:
        model = request.model
        digest = model.digest or self.versions[-1]
        if self.fails or digest not in self.versions:
            self.fails -= bool(self.fails)
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return tensorstore_pb2.DescribeResponse(
            summary=tensorstore_pb2.ModelSummary(
                model=common_pb2.ModelRef(model_id=model.model_id, digest=digest), layers=6
            ),
            manifest=self.manifest,
            part_bytes=self.part_bytes,
        )


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[_Store, str]]:
    monkeypatch.setattr(model_store, "RETRY_S", 0.01)
    servicer, server = _Store(), grpc.aio.server(options=channels.options(1 << 20))
    tensorstore_pb2_grpc.add_TensorStoreServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)


async def test_the_store_tells_what_the_model_is(store: tuple[_Store, str]) -> None:
    assert await describe(store[1], "tiny", known=None, timeout_s=20) == FACTS


async def test_a_model_of_another_family_is_told_with_its_sizes(store: tuple[_Store, str]) -> None:
    config = transformers.MixtralConfig(architectures=["MixtralForCausalLM"]).to_dict()
    store[0].manifest = json.dumps({"config": config}).encode()
    store[0].part_bytes = (3, *[5] * 32, 4)
    facts = await describe(store[1], "tiny", known=None, timeout_s=20)
    assert (facts.layer_count, facts.vocab_size) == (32, 32000)
    assert facts.context_length == config["max_position_embeddings"]
    assert facts.part_bytes == store[0].part_bytes


async def test_a_model_that_is_not_imported_yet_is_waited_for(store: tuple[_Store, str]) -> None:
    store[0].fails = 3
    assert await describe(store[1], "tiny", known=None, timeout_s=20) == FACTS
    assert store[0].fails == 0


async def test_without_a_store_the_journaled_facts_stand() -> None:
    known = replace(FACTS, digest="old")
    assert await describe("127.0.0.1:1", "tiny", known=known, timeout_s=0.01) == known


async def test_the_version_that_ran_is_kept_when_another_is_imported_under_its_name(
    store: tuple[_Store, str],
) -> None:
    store[0].versions.append("cd")
    known = replace(FACTS, vocab_size=7)
    assert await describe(store[1], "tiny", known=known, timeout_s=20) == FACTS
    assert await newest_digest(store[1], "tiny", timeout_s=20) == "cd"


async def test_a_start_that_names_a_version_gets_that_one(store: tuple[_Store, str]) -> None:
    store[0].versions += ["cd", "ef"]
    found = await describe(store[1], "tiny", digest="cd", known=FACTS, timeout_s=20)
    assert found == replace(FACTS, digest="cd")
    waits = describe(store[1], "tiny", digest="99", known=FACTS, timeout_s=0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waits, 0.5)


async def test_a_version_that_the_store_has_no_more_gives_way_to_the_newest(
    store: tuple[_Store, str],
) -> None:
    store[0].versions = ["cd"]
    found = await describe(store[1], "tiny", known=FACTS, timeout_s=20)
    assert found == replace(FACTS, digest="cd")


async def test_the_facts_of_another_model_do_not_stand(store: tuple[_Store, str]) -> None:
    known = replace(FACTS, model_id="other")
    store[0].fails = 2
    assert await describe(store[1], "tiny", known=known, timeout_s=0.01) == FACTS


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"config": 5}',
        b'{"config": {"model_type": "llama", "vocab_size": "x"}}',
    ],
)
async def test_a_manifest_without_the_facts_is_data_loss(
    store: tuple[_Store, str], manifest: bytes
) -> None:
    store[0].manifest = manifest
    with pytest.raises(DataLoss):
        await describe(store[1], "tiny", known=None, timeout_s=20)


def test_facts_come_back_from_the_journal() -> None:
    assert ModelFacts.from_json(FACTS.to_json()) == FACTS
    with pytest.raises(DataLoss):
        ModelFacts.from_json("{}")
