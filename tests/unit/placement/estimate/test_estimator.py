"""The estimator reproduces what was published, and says what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.phases import PipelinePhase
from services.placement.command.clusterfile import parse_pipeline
from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import PlacedPipeline, PlacedStage
from services.placement.estimate.estimator import Bottleneck, estimate_pipeline, estimate_plan
from services.placement.estimate.explain import explain_pipeline
from services.placement.estimate.model import load_model

PUBLISHED = {
    "g6.12xlarge:20,g6.12xlarge:21,g6.12xlarge:21,g6e.xlarge:10,g6e.xlarge:8": (
        28730,
        461,
        112.791,
        30.803,
        4.096,
    ),
    "g6e.xlarge:13,g5.12xlarge:27,g5.12xlarge:28,g6e.xlarge:12": (
        15049,
        241,
        83.501,
        22.444,
        2.898,
    ),
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_nominal_reproduces_the_published_pipelines(make_costs, text):
    blocks, batch, batch_s, alone_s, rate = PUBLISHED[text]
    got = estimate_pipeline(make_costs(), parse_pipeline(text, load_catalogue()))
    assert (got.kv_blocks, got.max_batch) == (blocks, batch)
    assert got.batch_latency_s == pytest.approx(batch_s, rel=0.01)
    assert got.single_request_latency_s == pytest.approx(alone_s, rel=0.01)
    assert got.throughput_rps == pytest.approx(rate, rel=0.01)


def test_a_window_saves_no_room_for_engines_keep_every_position(make_costs):
    model = load_model("llama-3.1-70b")
    node = parse_pipeline("g6e.xlarge:80", load_catalogue()).stages[0].node
    whole, windowed = (
        make_costs(replace(model, window=window)).of(node.kind, 1) for window in (None, 16)
    )
    assert windowed.kv_bytes_per_sequence(4) == whole.kv_bytes_per_sequence(4)


def test_a_stage_that_lacks_memory_is_named_with_what_is_missing(make_costs):
    pipeline = parse_pipeline("g6e.xlarge:40,g6e.xlarge:40", load_catalogue())
    with pytest.raises(FailedPrecondition, match=r"\d+\.\d GiB short on stage 0"):
        estimate_pipeline(make_costs(), pipeline)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("g6.12xlarge:40,g6.12xlarge:39", "layers"),
        ("g6.12xlarge:40,g6.12xlarge:41", "layers"),
        ("g6.12xlarge:0,g6.12xlarge:80", "layers"),
        ("g6.12xlarge:40:3,g6.12xlarge:40", "tp_degree"),
        ("g6.12xlarge:40:8,g6.12xlarge:40", "tp_degree"),
    ],
)
def test_a_wrong_pipeline_is_refused_by_field(make_costs, text, field):
    with pytest.raises(InvalidArgument) as caught:
        estimate_pipeline(make_costs(), parse_pipeline(text, load_catalogue()))
    assert caught.value.field == field


def test_a_node_used_twice_is_refused(make_costs):
    pipeline = parse_pipeline("g6.12xlarge:40,g6.12xlarge:40", load_catalogue())
    node = pipeline.stages[0].node
    twice = PlacedPipeline((PlacedStage(node, 0, 40, 4), PlacedStage(node, 40, 80, 4)))
    with pytest.raises(InvalidArgument, match="twice"):
        estimate_pipeline(make_costs(), twice)


def test_an_explanation_adds_up_to_the_stage_it_explains(make_costs):
    pipeline = parse_pipeline(next(iter(PUBLISHED)), load_catalogue())
    explained = explain_pipeline(make_costs(), pipeline)
    for one, stage in zip(explained.stages, explained.estimate.stages, strict=True):
        assert sum(op.prefill_s for op in one.operations) == pytest.approx(stage.prefill_s)
        assert sum(op.decode_s for op in one.operations) == pytest.approx(stage.decode_s)
    assert [one.memory_bottleneck for one in explained.stages] == [False, True, True, False, False]
    assert explained.estimate.stages[1].bound_by is Bottleneck.MEMORY
    more = explained.stages[4].alternatives[0]
    assert more.change == "one layer more"
    assert more.throughput_rps > explained.estimate.throughput_rps  # 20/20/21/10/9 is better


def test_load_raises_latency_until_saturation(make_costs):
    pipeline = parse_pipeline(next(iter(PUBLISHED)), load_catalogue())
    costs = make_costs()
    loads = [estimate_pipeline(costs, pipeline, rate).load for rate in (0.5, 2.0, 4.0)]
    assert loads[0].ttft_s < loads[1].ttft_s < loads[2].ttft_s
    assert loads[0].tpot_s < loads[1].tpot_s < loads[2].tpot_s
    assert estimate_pipeline(costs, pipeline, 5.0).load.ttft_s == float("inf")


def test_split_phases_carry_what_the_slower_side_and_the_network_carry(make_costs):
    costs = make_costs()
    whole = parse_pipeline("g6.12xlarge:40,g6.12xlarge:40", load_catalogue())
    prefill = replace(whole, phase=PipelinePhase.PREFILL)
    other = parse_pipeline("g5.12xlarge:40,g5.12xlarge:40", load_catalogue())
    decode = replace(other, phase=PipelinePhase.DECODE)
    total, each = estimate_plan(costs, [prefill, decode])
    assert total.throughput_rps <= min(e.throughput_rps for e in each) + 1e-9
    assert total.throughput_rps > 0
