from __future__ import annotations

import pytest

from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.prefix import chain_of
from services.engine.backend import BLOCK_SIZE, SequenceOpen
from services.engine.core.actions import SequenceKey
from services.engine.core.lookup import Lookup
from services.engine.core.sequence import BatchedSequence


def sequence(prompt: int, output: tuple[int, ...] = (), salt: str = "") -> BatchedSequence:
    request = GenerationRequest(
        "g", ModelRef("m", "d"), tuple(range(prompt)), Sampling(9), cache_salt=salt
    )
    tokens = [*request.prompt_ids, *output]
    key, lookup = SequenceKey("g", 1, 3), Lookup(request, tokens)
    return BatchedSequence(key, request, 1, tokens, len(output), lookup)


def test_blocks_are_named_as_a_router_names_them_and_output_goes_on_from_the_prompt() -> None:
    whole, split = sequence(70, salt="s"), sequence(40, tuple(range(40, 70)), salt="s")
    names = list(chain_of(whole.request, BLOCK_SIZE))
    assert [whole.block_hash(index) for index in range(4)] == names
    assert [split.block_hash(index) for index in (3, 0, 1, 2)] == [names[3], *names[:3]]


def test_names_follow_ids_as_they_come() -> None:
    growing = sequence(20)
    first = growing.block_hash(0)
    growing.tokens += range(20, 32)
    assert [first, growing.block_hash(1)] == [sequence(32).block_hash(index) for index in range(2)]


@pytest.mark.parametrize(("ids", "blocks"), [(1, 0), (16, 0), (17, 1), (32, 1), (33, 2)])
def test_the_last_id_is_never_found_computed(ids: int, blocks: int) -> None:
    assert sequence(ids).shareable == blocks


def test_the_stages_are_told_what_it_goes_on_from() -> None:
    entering = sequence(3, (7, 8))
    entering.slot = 5
    assert entering.opening == SequenceOpen(5, Sampling(9), 3, (0, 1, 2), (7, 8))
    assert entering.remaining == 5
