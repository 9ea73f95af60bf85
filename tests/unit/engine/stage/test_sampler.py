"""The sampler against naive code, and the promises that replay rests on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.generation import Sampling
from services.engine.stage.sampler import (
    adjust,
    best,
    draw,
    logprob_of,
    open_slot,
    sample,
    uniform,
)

VOCAB = 40
TOLERANCE = 1e-5
# Quarters: exact in fp32, and with many ties.
logit_rows = st.lists(st.integers(-40, 40), min_size=VOCAB, max_size=VOCAB).map(
    lambda values: np.array(values, dtype=np.float32) / 4
)
id_lists = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def _ordered(logits):
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def _naive_distribution(logits, sampling, top_p):
    """(id, probability) of all candidates in the order the draw goes through them."""
    ids = _ordered(logits)
    filtered = 0 < sampling.top_k < len(logits)
    if filtered:
        ids = ids[: sampling.top_k]
    peak = max(logits)
    weights = {i: math.exp((float(logits[i]) - peak) / sampling.temperature) for i in ids}
    weights = {i: w for i, w in weights.items() if w >= sampling.min_p - 1e-9}
    if sampling.top_p < 1:
        filtered, total, mass, kept = True, sum(weights.values()), 0.0, {}
        for i in ids:
            if mass >= top_p * total or i not in weights:
                break
            kept[i] = weights[i]
            mass += weights[i]
        weights = kept
    total = sum(weights.values())
    order = ids if filtered else range(len(logits))
    return [(i, weights[i] / total) for i in order if i in weights]


@given(
    logits=logit_rows,
    temperature=st.sampled_from([0.25, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 39, 40, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.03, 0.4]),
    u=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_the_inverse_of_the_naive_distribution(
    logits, temperature, top_k, top_p, min_p, u
):
    sampling = Sampling(1, temperature, top_k, top_p, min_p)
    chosen = draw(logits.copy(), sampling, u)
    for near in (top_p, top_p - TOLERANCE, top_p + TOLERANCE):
        low = 0.0
        for token_id, probability in _naive_distribution(logits, sampling, near):
            if token_id == chosen and low - TOLERANCE <= u <= low + probability + TOLERANCE:
                return
            low += probability
    raise AssertionError(f"{chosen} is not what {u} points at")


@given(
    logits=logit_rows,
    prompt=id_lists,
    outputs=id_lists,
    bias=st.dictionaries(
        st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -2.0, 5.0]), max_size=4
    ),
    repetition=st.sampled_from([1.0, 1.5, 0.5]),
    presence=st.sampled_from([0.0, 0.75, -2.0]),
    frequency=st.sampled_from([0.0, 0.5, -1.0]),
    min_tokens=st.sampled_from([0, 5, 20]),
    ignore_eos=st.booleans(),
    allowed=st.lists(st.integers(0, VOCAB - 1), max_size=5).map(tuple),
)
def test_adjusted_logits_are_those_of_naive_code(
    logits, prompt, outputs, bias, repetition, presence, frequency, min_tokens, ignore_eos, allowed
):
    sampling = Sampling(
        max_tokens=99,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
        eos_token_ids=(0, 1),
        stop_token_ids=(2,),
        allowed_token_ids=allowed,
    )
    before = logits.copy()
    counts, seen, expected = Counter(outputs), {*prompt, *outputs}, []
    for i, logit in enumerate(logits):
        x = np.float32(logit)
        if i in seen:
            x = x / np.float32(repetition) if x > 0 else x * np.float32(repetition)
        if counts[i]:
            x = x - np.float32(presence) - np.float32(frequency) * np.float32(counts[i])
        x += np.float32(bias.get(i, 0))
        banned = {2} if ignore_eos else {0, 1, 2}
        masked = len(outputs) < min_tokens and i in banned
        expected.append(-np.inf if masked or (allowed and i not in allowed) else x)
    adjusted = adjust(logits, open_slot(sampling, 0, prompt, outputs))
    assert adjusted.tolist() == [float(x) for x in expected]
    assert (logits == before).all()


@given(logits=logit_rows, count=st.integers(1, VOCAB + 3))
def test_the_best_ids_come_logit_down_id_up(logits, count):
    assert best(logits, count).tolist() == _ordered(logits)[:count]


@given(logits=logit_rows)
def test_greedy_takes_the_lowest_of_tied_ids(logits):
    state = open_slot(Sampling(9, temperature=0), 0, (), ())
    assert sample(logits, state) == (_ordered(logits)[0], None)


@given(logits=logit_rows, token_id=st.integers(0, VOCAB - 1), count=st.integers(0, 5))
def test_logprobs_are_those_of_the_model(logits, token_id, count):
    exact = [float(x) for x in logits]
    normalizer = math.log(sum(math.exp(x) for x in exact))
    found = logprob_of(logits, token_id, count)
    assert found.logprob == pytest.approx(exact[token_id] - normalizer, abs=1e-5)
    assert [i for i, _ in found.top] == _ordered(logits)[:count]
    for i, logprob in found.top:
        assert logprob == pytest.approx(exact[i] - normalizer, abs=1e-5)


@given(
    rows=st.lists(logit_rows, min_size=6, max_size=6),
    cut=st.integers(0, 6),
    prompt=id_lists,
    choice=st.integers(0, 3),
)
def test_a_sequence_taken_up_at_any_cut_draws_the_same_ids(rows, cut, prompt, choice):
    sampling = Sampling(
        max_tokens=9,
        temperature=1.1,
        top_p=0.95,
        repetition_penalty=1.3,
        presence_penalty=0.2,
        frequency_penalty=0.4,
        logit_bias={3: 1.5},
        min_tokens=3,
        eos_token_ids=(1,),
        seed=2**64 - 1,
    )
    whole = open_slot(sampling, choice, prompt, ())
    ids = [sample(row, whole)[0] for row in rows]
    resumed = open_slot(sampling, choice, prompt, ids[:cut])
    assert [sample(row, resumed)[0] for row in rows[cut:]] == ids[cut:]


def test_every_position_and_choice_draws_with_its_own_number():
    logits = np.zeros(VOCAB, dtype=np.float32)
    sampling = Sampling(max_tokens=9, seed=3)
    for choice in (0, 1):
        state = open_slot(sampling, choice, (1, 2, 3), ())
        ids = [sample(logits, state)[0] for _ in range(20)]
        assert ids == [draw(logits, sampling, uniform(3, choice, p)) for p in range(20)]
        assert len(set(ids)) > 5


def test_a_draw_from_a_large_vocabulary_is_the_inverse_of_the_running_sum():
    logits = np.random.default_rng(2).normal(0, 2, 5000).astype(np.float32)
    sums = np.cumsum(np.exp(logits.astype(np.float64)))
    for position in range(300):
        u = uniform(5, 0, position)
        chosen = draw(logits, Sampling(1), u)
        low = sums[chosen - 1] / sums[-1] if chosen else 0.0
        assert low - TOLERANCE <= u <= sums[chosen] / sums[-1] + TOLERANCE


def test_the_random_number_is_pinned_for_ever():
    assert uniform(0, 0, 0) == 0.2450726058450119
    assert uniform(2**64 - 1, 3, 1000) == 0.9573264951710077


def test_random_numbers_are_uniform_over_seeds_choices_and_positions():
    numbers = [uniform(s, c, p) for s in range(20) for c in range(10) for p in range(20)]
    assert len(set(numbers)) == 4000
    histogram = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((histogram - 200) ** 2 / 200).sum() < 43.8  # chi squared, 19 degrees, 0.1 %


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampling = Sampling(max_tokens=1)
    counts = Counter(draw(logits, sampling, uniform(1, 0, p)) for p in range(4000))
    expected = np.array([2000, 1200, 600, 200])
    found = np.array([counts[i] for i in range(4)])
    assert ((found - expected) ** 2 / expected).sum() < 16.3  # 3 degrees, 0.1 %


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_no_probability_is_never_drawn(u):
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], dtype=np.float32)
    assert draw(logits, Sampling(1), u) in (1, 3)
    assert draw(logits, Sampling(1, temperature=1e-30), u) in (1, 3)


def test_a_nucleus_wider_than_the_first_cut_is_found_whole():
    logits = np.zeros(5000, dtype=np.float32)
    logits[0] = 8  # all others lie below the first cut, and hold most of the mass
    assert draw(logits, Sampling(1, top_p=0.999), 1 - 2**-53) > 4000


def test_settings_that_crossed_a_wire_as_fp32_draw_the_same():
    logits = np.linspace(-3, 3, 2000, dtype=np.float32)
    wide = Sampling(1, temperature=0.7, top_p=0.9, min_p=0.01)
    narrow = replace(
        wide,
        temperature=float(np.float32(0.7)),
        top_p=float(np.float32(0.9)),
        min_p=float(np.float32(0.01)),
    )
    numbers = [uniform(1, 0, p) for p in range(200)]
    assert [draw(logits, wide, u) for u in numbers] == [draw(logits, narrow, u) for u in numbers]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(9, min_tokens=5, stop_token_ids=tuple(range(VOCAB)), min_p=0.5),
        Sampling(9, repetition_penalty=1e-45, top_p=0.5),
        Sampling(9, temperature=1e-38, logit_bias={3: 3.4e38}, repetition_penalty=1e-38),
        Sampling(9, temperature=0.0, min_tokens=5, stop_token_ids=tuple(range(VOCAB))),
    ],
)
def test_no_parameters_keep_a_row_from_yielding_an_id(sampling):
    """An exception here would end the batch for every other sequence in it."""
    logits = np.linspace(-3, 3, VOCAB, dtype=np.float32)
    first = sample(logits, open_slot(sampling, 0, [1, 2, VOCAB - 1], [4]))
    again = sample(logits, open_slot(sampling, 0, [1, 2, VOCAB - 1], [4]))
    assert 0 <= first[0] < VOCAB
    assert first == again
