"""Drafts change no id, nor what is told of one."""

from __future__ import annotations

import pytest
import torch

from bench.scheduled import Scheduled
from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.core.scheduler import SchedulerSettings
from tests.drafted import FEW, PROMPTS, check_mixes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_drafts_change_no_id_on_a_gpu(tiny_model, llama, dtype):
    model, way = tiny_model(llama), {"device": "cuda", "dtype": dtype}
    split = [model.stage(range(0, 2), **way), model.stage(range(2, 5), **way)]
    check_mixes([model.stage(**way)], split, 16)


def test_log_probabilities_are_those_of_tokens_alone(tiny_model, llama, pipeline):
    """A draft's row says what the row of the token itself would have said."""
    stage = tiny_model(llama).stage()
    request = GenerationRequest(
        "g",
        ModelRef("tiny", "d"),
        tuple(PROMPTS[2]),
        Sampling(40, temperature=0.0, top_logprobs=3, logit_bias=FEW),
    )
    told = []
    for drafts in (0, 8):
        run = Scheduled([stage], SchedulerSettings(max_drafts=drafts), 64)
        run.start(request)
        tokens = []
        while run.depart():
            tokens += run.flights[0][1]
            run.arrive()
        told.append([(token.position, token.token_id, token.logprob) for token in tokens])
        assert bool(run.accepted) is bool(drafts)
    assert told[0] == told[1]


def test_ids_that_are_given_are_as_likely_as_when_they_are_read(tiny_model, llama):
    """Each is told as a request would be told that ends before it, at the pace of a prompt."""
    stage, model = tiny_model(llama).stage(), ModelRef("tiny", "d")
    text, drawn = tuple(PROMPTS[4]), {"temperature": 0.8, "seed": 5, "top_logprobs": 3}
    given = Sampling(len(text) - 1 + 6, given_ids=text[1:], min_tokens=len(text) - 1, **drawn)
    whole = _told(stage, GenerationRequest("g", model, text[:1], given))
    assert [token_id for token_id, _ in whole[: len(text) - 1]] == list(text[1:])
    for position, token_id in enumerate(text[1:], start=1):
        alone = Sampling(1, allowed_token_ids=(token_id,), **drawn)
        request = GenerationRequest(f"g{position}", model, text[:position], alone)
        assert _told(stage, request) == [whole[position - 1]]
    # What is drawn behind them is what would be drawn behind a prompt.
    behind = _told(stage, GenerationRequest("b", model, text, Sampling(6, **drawn)))
    assert behind == whole[len(text) - 1 :]


def test_given_ids_go_as_many_to_a_step_as_it_has_room_for(tiny_model, llama):
    text = tuple(5 + i % 90 for i in range(200))
    sampling = Sampling(len(text) - 1, given_ids=text[1:], min_tokens=len(text) - 1)
    run = Scheduled([tiny_model(llama).stage()], SchedulerSettings(max_drafts=0), 64)
    run.start(GenerationRequest("g", ModelRef("tiny", "d"), text[:1], sampling))
    run.finish()
    assert list(*run.outputs.values()) == list(text[1:])
    assert len(run.steps) <= 2 + len(text) / SchedulerSettings().max_asked
    assert sum(step.drafted for step in run.steps) == run.accepted == 0


@pytest.mark.parametrize("cut", [0, 1, 7, 31, 32, 33, 36])
def test_given_ids_go_on_wherever_they_were_cut(tiny_model, llama, cut):
    stage, text = tiny_model(llama).stage(), tuple(PROMPTS[4])
    options = {"temperature": 0.9, "seed": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.5}
    sampling = Sampling(len(text) + 7, given_ids=text[1:], min_tokens=len(text) - 1, **options)
    request = GenerationRequest("g", ModelRef("tiny", "d"), text[:1], sampling)
    whole = [token_id for token_id, _ in _told(stage, request)]
    assert whole[:cut] + [i for i, _ in _told(stage, request, whole[:cut])] == whole
    read = Sampling(8, **options)
    behind = _told(stage, GenerationRequest("b", ModelRef("tiny", "d"), text, read))
    assert [token_id for token_id, _ in behind] == whole[len(text) - 1 :]


def _told(stage, request, held=()):
    """What a request says, with how likely it is."""
    run = Scheduled([stage], SchedulerSettings(share_prefixes=False), 64)
    run.start(request, held)
    told = []
    while run.depart():
        told += [(token.token_id, token.logprob) for token in run.flights[0][1]]
        run.arrive()
    return told
