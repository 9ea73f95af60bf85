from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.common.errors import FailedPrecondition, NotFound
from services.common.exchange import DeployedModel, Route
from services.common.generation import ModelRef
from services.router.catalogue import MAX_MODELS, ModelCatalogue
from services.router.grammar_checks import GrammarChecks
from services.router.model_files import ModelFiles
from tests.tiny_model import MODEL, model_files, tiny_tokenizer

CONFIG = {"model_type": "llama", "max_position_embeddings": 64, "vocab_size": 303}
ROUTE = Route("p", "f", "i", "a", 1.0, MODEL, 64)


def _catalogue(fetched: list[ModelRef] | None = None, **settings: Any) -> ModelCatalogue:
    """Of one model, whose tokenizer_config.json holds these; notes what is fetched."""
    files = model_files(tiny_tokenizer())
    files["tokenizer_config.json"] = json.dumps({"eos_token": "<|im_end|>", **settings}).encode()

    async def fetch(ref: ModelRef) -> ModelFiles:
        if fetched is not None:
            fetched.append(ref)
        return ModelFiles(ref, CONFIG, files)

    found = ModelCatalogue(fetch, lambda: 0.0, GrammarChecks())
    found.update([ROUTE], [DeployedModel(MODEL)])
    return found


async def test_a_model_is_loaded_once() -> None:
    fetched: list[ModelRef] = []
    catalogue = _catalogue(fetched)
    first, second = await asyncio.gather(catalogue.load(MODEL), catalogue.load(MODEL))
    assert first is second is await catalogue.load(MODEL)
    assert fetched == [MODEL]


async def test_a_caller_that_gives_up_leaves_the_load_to_the_others() -> None:
    fetched: list[ModelRef] = []
    catalogue = _catalogue(fetched)
    impatient = asyncio.create_task(catalogue.load(MODEL))
    patient = asyncio.create_task(catalogue.load(MODEL))
    while not fetched:  # noqa: ASYNC110
        await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).facts.ref == MODEL
    assert impatient.cancelled()
    assert fetched == [MODEL]


@pytest.mark.parametrize("template", [[1, 2], [{"name": []}], [[]]])
async def test_a_model_with_malformed_files_is_refused_and_nothing_else_happens(
    template: Any,
) -> None:
    catalogue = _catalogue(chat_template=template)
    await catalogue.preload()
    with pytest.raises(FailedPrecondition):
        await catalogue.load(MODEL)


def _route(name: str, digest: str = "ab" * 32) -> Route:
    return Route("p", "f", "i", "a", 1.0, ModelRef(name, digest), 64)


def _update(catalogue: ModelCatalogue, *routes: Route) -> None:
    """All of their models are deployed, and nothing else."""
    catalogue.update(routes, [DeployedModel(route.model) for route in routes])


def test_a_name_stands_for_the_version_that_is_deployed() -> None:
    catalogue, newer = _catalogue(), _route("tiny", "cd" * 32)
    _update(catalogue, newer)
    assert catalogue.current("tiny").digest == "cd" * 32
    catalogue.update([], [DeployedModel(newer.model)])
    assert catalogue.current("tiny").digest == "cd" * 32


def test_what_is_deployed_is_listed_from_its_first_pipeline_on() -> None:
    catalogue, other = _catalogue(), _route("other")
    both = [DeployedModel(MODEL), DeployedModel(other.model)]
    catalogue.update([ROUTE], both)
    assert (catalogue.names(), catalogue.current("other")) == (["tiny"], other.model)
    catalogue.update([ROUTE, other], both)
    catalogue.update([other], both)
    assert catalogue.names() == ["tiny", "other"]
    assert catalogue.route_positions("tiny") == ROUTE.max_positions
    catalogue.update([other], both[1:])
    assert catalogue.names() == ["other"]
    with pytest.raises(NotFound):
        catalogue.current("tiny")


def test_why_a_model_cannot_be_served_is_of_that_model_alone() -> None:
    catalogue, other = _catalogue(), _route("other")
    catalogue.update([ROUTE], [DeployedModel(MODEL), DeployedModel(other.model, "too large")])
    assert catalogue.unusable("tiny") is None
    reason = catalogue.unusable("other")
    assert reason is not None
    assert (reason.permanent, "too large" in reason.message) == (True, True)


def test_more_models_than_there_are_places_leave_those_that_were_first() -> None:
    catalogue = _catalogue()
    served = [_route(f"model-{number:03}") for number in range(MAX_MODELS + 9)]
    for _ in range(3):
        _update(catalogue, *served)
    assert set(catalogue.first_seen) == {r.model.model_id for r in served[:MAX_MODELS]}
