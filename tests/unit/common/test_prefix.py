from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.common.prefix import chain_of, next_hash, owner_of, root_of, told

REQUEST = GenerationRequest("g", ModelRef("m", "d1"), tuple(range(40)), Sampling(1))


def chain(prompt: tuple[int, ...], size: int = 16) -> list[bytes]:
    return list(chain_of(replace(REQUEST, prompt_ids=prompt), size))


ids = st.lists(st.integers(0, 3), max_size=12).map(tuple)


@given(ids, ids)
def test_blocks_have_one_name_exactly_where_everything_up_to_their_end_is_equal(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    pairs = zip(chain(one, 2), chain(other, 2), strict=False)
    for index, (mine, theirs) in enumerate(pairs):
        end = 2 * (index + 1)
        assert (mine == theirs) == (one[:end] == other[:end])


def test_only_full_blocks_have_names() -> None:
    assert [len(chain(tuple(range(n)))) for n in (0, 15, 16, 31, 32, 40)] == [0, 0, 1, 1, 2, 2]


def test_models_and_salts_share_nothing() -> None:
    others = [
        replace(REQUEST, model=ModelRef("m", "d2")),
        replace(REQUEST, cache_salt="a"),
        replace(REQUEST, model=ModelRef("m", "d"), cache_salt="1"),
    ]
    roots = {root_of(request) for request in (REQUEST, *others)}
    assert len(roots) == 4
    assert root_of(replace(REQUEST, generation_id="h", model=ModelRef("n", "d1"))) in roots


def test_the_chain_is_what_a_head_makes_block_by_block() -> None:
    first = next_hash(root_of(REQUEST), range(16))
    assert chain(REQUEST.prompt_ids) == [first, next_hash(first, range(16, 32))]
    assert 0 <= told(first) < 1 << 64


def test_blocks_that_may_be_rounded_are_one_generations_own() -> None:
    """No other finds them, and their names say so; all others' are what they were."""
    rounds = replace(REQUEST, sampling=replace(REQUEST.sampling, kv_int8=True))
    another = replace(rounds, generation_id="h")
    chains = [list(chain_of(one, 16)) for one in (REQUEST, rounds, another)]
    assert len({name for chain in chains for name in chain}) == 6
    assert len({told(name) for chain in chains for name in chain}) == 6
    owners = [{owner_of(name) for name in chain} for chain in chains]
    assert owners == [{b""}, {owner_of(root_of(rounds))}, {owner_of(root_of(another))}]
    assert len({*owners[0], *owners[1], *owners[2]}) == 3
    assert {len(name) for name in chains[0]} == {32}
