"""What a head shows of the pipeline it heads, and that it shows nothing of one it left."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import REGISTRY

from services.engine.counters import Counters


@dataclass
class _Blocks:
    count: int = 8
    cached_count: int = 1


@dataclass
class _Scheduler:
    running: int = 2
    queued: int = 3
    used_blocks: int = 6
    preemptions: int = 4
    blocks: _Blocks = field(default_factory=_Blocks)


GAUGES = {
    "vllm:num_requests_running": 2.0,
    "vllm:num_requests_waiting": 3.0,
    "vllm:kv_cache_usage_perc": 0.75,
    "vllm:num_preemptions_total": 4.0,
    "vllm:request_queue_time_seconds_sum": 1.5,
}


def shown(pipeline: str) -> dict[str, float | None]:
    labels = {"model_name": "m", "pipeline": pipeline}
    return {name: REGISTRY.get_sample_value(name, labels) for name in GAUGES}


def test_a_head_tells_of_the_pipeline_it_heads_and_of_no_other() -> None:
    counters = Counters()
    counters.gauge(_Scheduler())  # type: ignore[arg-type]
    counters.formed("m", "one")
    counters.admitted(1.5)
    for _ in range(2):
        counters.gauge(_Scheduler())  # type: ignore[arg-type]
    assert shown("one") == GAUGES
    counters.formed("m", "two")
    assert shown("one") == dict.fromkeys(GAUGES)
    assert shown("two")["vllm:num_preemptions_total"] == 0.0
    counters.gauge(_Scheduler(preemptions=1))  # type: ignore[arg-type]
    assert shown("two")["vllm:num_preemptions_total"] == 1.0
    counters.dissolved()
    assert shown("two") == dict.fromkeys(GAUGES)
    counters.gauge(None)
    counters.admitted(1.0)
    assert shown("two") == dict.fromkeys(GAUGES)
