"""Engines that compute with vLLM, over real gRPC: the promises of every engine."""

from __future__ import annotations

from collections.abc import Callable

from services.common.generation import GenerationRequest, Sampling
from tests.contract.engine.layouts import check_layouts
from tests.vllm.conftest import LLAMA, Stored

PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (9, 33, 40, 40)]
IDS = 24


async def test_a_model_says_the_same_in_every_layout_alone_and_replayed(
    stored: Callable[..., Stored],
) -> None:
    """Two of the prompts are equal, so one of them goes on over blocks that the other computed."""
    model = stored(LLAMA)

    def requests(name: str) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                f"{name}-{place}",
                model.model,
                tuple(prompt),
                Sampling(IDS, temperature=0.8 * (place % 2), seed=place, top_logprobs=2),
            )
            for place, prompt in enumerate(PROMPTS)
        ]

    ids = await check_layouts(
        model.loader,
        model.model,
        LLAMA["num_hidden_layers"],
        ([], [2], [1, 3]),
        requests,
        replayed_at=(1, 17),
    )
    assert len({tuple(one) for one in ids}) == len(PROMPTS)
