"""One arithmetic, on however many ranks."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument
from services.engine.backend import Batch, Hidden
from services.engine.native import kernels, meeting
from services.engine.native.model import kv_block_bytes, layer_bytes
from services.engine.native.slices import slice_of
from tests.unit.engine.native.ranked import on_ranks

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="needs a compiler and a known CPU")
EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 516}
NINE = {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3}
MODELS = {
    "eight heads": EIGHT,
    "shared key-value heads": EIGHT | {"num_key_value_heads": 2},
    "one key-value head": EIGHT | {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "two parts": EIGHT | {"num_attention_heads": 6, "num_key_value_heads": 2},
    "biases": EIGHT | {"attention_bias": True, "mlp_bias": True},
    "norms behind, GELU and caps": EIGHT
    | {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0}
    | {"sliding_window": 20, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 3.0},
    "padded sizes": EIGHT | {"hidden_size": 104, "head_dim": 24, "intermediate_size": 1004},
}
PROMPTS = [[5 + (7 * i + 13 * n) % 500 for i in range(n)] for n in (1, 17, 40)]
SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "frequency_penalty": 0.3}


def _answers(pipeline, stage):
    """Alone, in chunks, and from a cut."""
    whole = pipeline([stage])
    alone = [whole.generate(prompt, 10, **SEEDED) for prompt in PROMPTS]
    greedy = whole.generate(PROMPTS[2], 10, chunks=[16, 7])
    assert whole.generate(PROMPTS[2], 10, alone[2][:4], **SEEDED) == alone[2]
    return [*alone, greedy]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_one_rank(tiny_model, pipeline, name, dtype):
    model = tiny_model(**MODELS[name])
    (reference,) = on_ranks(model, 1, lambda stage: _answers(pipeline, stage), dtype=dtype)
    assert len({tuple(ids) for ids in reference}) > 1
    for degree in (2, 4) if slice_of(model.config).parts == 4 else (2,):
        for ids in on_ranks(model, degree, lambda stage: _answers(pipeline, stage), dtype=dtype):
            assert ids == reference, degree


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_hidden_states_are_the_same_bits_at_every_rank(tiny_model, pipeline, monkeypatch, dtype):
    """Of more rows than the ranks tell each other at a time."""
    monkeypatch.setattr(meeting, "AREA_BYTES", 1 << 12)
    model, layers = tiny_model(**EIGHT), range(3)

    def run(stage):
        driver = pipeline([stage])
        batch = Batch([driver.step(0, 0, 61)], [driver.open(0, list(range(61)))])
        return stage.forward(batch, list(range(61)))

    (reference,) = on_ranks(model, 1, run, layers, dtype=dtype)
    assert isinstance(reference, Hidden)
    for degree in (2, 4):
        assert on_ranks(model, degree, run, layers, dtype=dtype) == [reference] * degree


def test_a_stage_is_of_one_class_and_exact_on_any_number_of_ranks(tiny_model):
    model = tiny_model(**EIGHT)

    def facts(stage):
        return stage.facts.numerics_class, stage.facts.exact

    (reference,) = on_ranks(model, 1, facts, self_test=True)
    assert reference[1]
    for degree in (2, 4):
        assert set(on_ranks(model, degree, facts, self_test=True)) == {reference}


def test_ranks_refuse_a_malformed_batch_alike_and_go_on(tiny_model, pipeline):
    model = tiny_model(**EIGHT)

    def run(stage):
        driver = pipeline([stage])
        with pytest.raises(InvalidArgument, match="slot 3 is not open"):
            stage.forward(Batch([driver.step(3, 0, 1)]), [1])
        return driver.generate(PROMPTS[1], 4)

    (reference,) = on_ranks(model, 1, run)
    assert on_ranks(model, 2, run) == [reference] * 2


@pytest.mark.parametrize(
    ("changes", "degree", "said"),
    [
        (NINE, 2, "9 attention heads"),
        (EIGHT | {"num_attention_heads": 12, "num_key_value_heads": 3}, 2, "3 key-value heads"),
        (EIGHT | {"intermediate_size": 1134}, 4, "1134 feed-forward rows"),
        (EIGHT | {"vocab_size": 515}, 2, "515 rows of vocabulary"),
        (EIGHT | {"num_key_value_heads": 8, "vocab_size": 520}, 8, "runs .* at 1, 2, 4"),
        (NINE | {"vocab_size": 516, "intermediate_size": 1137}, 3, "at 1$"),
    ],
)
def test_a_degree_that_does_not_divide_the_model_is_refused_by_name(
    tiny_model, changes, degree, said
):
    with pytest.raises(InvalidArgument, match=said) as caught:
        slice_of(tiny_model(**changes).config, degree)
    assert caught.value.field == "tp_degree"


def test_ranks_hold_a_model_once_but_for_what_each_needs_whole(tiny_model):
    """Norms, and key-value heads that several ranks share."""
    config = tiny_model(**MODELS["shared key-value heads"]).config
    one, four = (layer_bytes(slice_of(config, n), range(5), "bf16") for n in (1, 4))
    keys = 2 * 32 * config.hidden_size
    assert four[2] - one[2] == 2 * (3 * 2 * config.hidden_size + 2 * keys)
    blocks = [kv_block_bytes(slice_of(config, n), range(5), "bf16") for n in (1, 2, 4)]
    assert blocks[0] == blocks[1] == blocks[2] / 2


def test_norms_of_all_heads_together_run_on_one_rank(tiny_model):
    config = tiny_model(**EIGHT, model_type="olmo2", pad_token_id=None).config
    assert slice_of(config).ranks == 1
    with pytest.raises(InvalidArgument, match="TP degree 2") as refused:
        slice_of(config, 2)
    assert refused.value.field == "tp_degree"


@pytest.mark.parametrize("name", ["eight heads", "shared key-value heads", "padded sizes"])
def test_blocks_go_between_degrees_along_the_heads(tiny_model, pipeline, name):
    """Each rank gives its heads, which are joined; each takes its own of all."""
    model, prompt = tiny_model(**MODELS[name]), PROMPTS[2]
    layers = range(model.config.layer_count)

    def give(stage):
        driver = pipeline([stage])
        ids = driver.generate(prompt, 10, **SEEDED)
        known = [*prompt, *ids]
        opened = driver.open(1, known)
        driver.run(Batch([driver.step(1, 0, len(known) - 1, sample=False)], [opened]), known[:-1])
        full = (len(known) - 1) // 16
        blocks = driver.table(1)[:full]
        return ids, stage.kv_layout, stage.kv_heads, stage.export_blocks(blocks)

    def takes(blocks):
        def take(stage):
            driver = pipeline([stage])
            stage.import_blocks(driver.table(2)[: len(blocks)], blocks)
            start = len(blocks) * 16
            known = [*prompt, *alone][: start + 1]
            opened = driver.open(2, prompt, known[len(prompt) :], **SEEDED)
            batch = Batch([driver.step(2, start, 1)], [opened])
            return (
                stage.kv_layout,
                driver.run(batch, known[start:])[0].token_id,
                stage.export_blocks(driver.table(2)[: len(blocks)]),
            )

        return take

    given = {degree: on_ranks(model, degree, give) for degree in (1, 2, 4)}
    (alone, layout, _, whole), *_ = given[1]
    assert whole
    for degree, ranks in given.items():
        assert {(tuple(ids), own) for ids, own, _, _ in ranks} == {(tuple(alone), layout)}
        parts = zip(*([(heads, one) for one in data] for _, _, heads, data in ranks), strict=True)
        assert [layout.joined(layers, part) for part in parts] == whole
        followed = alone[len(whole) * 16 + 1 - len(prompt)]
        for taken in on_ranks(model, degree, takes(whole)):
            assert taken[:2] == (layout, followed)
