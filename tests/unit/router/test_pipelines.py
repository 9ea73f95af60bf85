"""How long a router tells of a pipeline that is no more."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.common.exchange import Route
from services.common.generation import ModelRef
from services.router.core.latencies import Ended, Heard
from services.router.pipelines import KEPT_S, PipelineTable

MODEL = ModelRef("served", "d")


def route(pipeline_id: str) -> Route:
    return Route(pipeline_id, f"f-{pipeline_id}", "i", "h:1", 1.0, MODEL, 100)


def counted(pipeline_id: str, name: str = "vllm:generation_tokens_total") -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": "served", "pipeline": pipeline_id})


def test_a_pipeline_is_told_of_from_0_on_and_for_a_while_behind_its_end() -> None:
    table = PipelineTable()
    table.update([route("one"), route("two")])
    table.tick(0.0)
    assert counted("one") == 0.0
    series = table.of("served", "one")
    series.heard(Heard(first_token_s=1.0), 5, 3)
    series.ended(Ended(2.0, 0.5), ["stop"])
    table.update([route("two")])
    table.tick(10.0)
    table.tick(9.0 + KEPT_S)
    assert counted("one") == 3.0
    table.tick(10.0 + KEPT_S)
    for name in (
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_time_per_output_token_seconds_count",
    ):
        assert counted("one", name) is None, name
    ends = {"model_name": "served", "pipeline": "one", "finished_reason": "stop"}
    assert REGISTRY.get_sample_value("vllm:request_success_total", ends) is None
    assert counted("two") == 0.0


def test_a_pipeline_that_comes_back_in_time_is_the_one_it_was() -> None:
    table = PipelineTable()
    table.update([route("back")])
    table.of("served", "back").heard(Heard(), 5, 3)
    table.update([])
    table.tick(0.0)
    table.update([route("back")])
    table.tick(1.0)
    table.update([])
    table.tick(2.0)
    table.tick(1.0 + KEPT_S)
    assert counted("back") == 3.0


def test_what_is_read_from_a_pipeline_that_was_let_go_is_let_go_again() -> None:
    table = PipelineTable()
    table.of("served", "late").heard(Heard(), 5, 3)
    table.tick(0.0)
    table.tick(KEPT_S)
    assert counted("late") is None
    table.of("served", "late").heard(Heard(), 5, 2)
    assert counted("late") == 2.0
    table.tick(KEPT_S + 1.0)
    table.tick(2 * KEPT_S + 1.0)
    assert counted("late") is None
