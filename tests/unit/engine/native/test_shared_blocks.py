"""A chat's second turn, over a real stage."""

from __future__ import annotations

from bench.scheduled import Scheduled
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.backend import BLOCK_SIZE
from services.engine.core.scheduler import SchedulerSettings

MODEL = ModelRef("tiny", "d")


def test_the_second_turn_of_a_chat_computes_what_is_new_and_no_more_than_a_block_of_the_rest(
    tiny_model, llama
):
    stage = tiny_model(llama, max_position_embeddings=4096).stage(kv_blocks=256)
    told = tuple(5 + (7 * i) % 490 for i in range(2000))
    asked = tuple(5 + (11 * i) % 490 for i in range(40))
    rows, said = [], []
    for shares in (True, False):
        run = Scheduled([stage], SchedulerSettings(share_prefixes=shares, max_drafts=0), 256)
        for name, prompt in (("first", told), ("second", (*told, *asked))):
            before = len(run.steps)
            run.start(GenerationRequest(name, MODEL, prompt, Sampling(12, temperature=0.0)))
            run.finish()
        rows.append(sum(len(step.token_ids) for step in run.steps[before:]))
        said.append(run.outputs)
    assert said[0] == said[1]
    assert rows[1] == 2040 + 11
    assert rows[0] <= 40 + 11 + BLOCK_SIZE
