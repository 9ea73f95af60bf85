"""What this process has done, for Describe and for Prometheus, there under its own names and, where
they mean the same, under vLLM's (docs/metrics.md)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.engine.core.blocks import CacheUse
from services.engine.core.scheduler import Scheduler, Step

STEPS = Counter("shunt_engine_steps", "Steps begun by this head.")
SAMPLED = Counter("shunt_engine_sampled_tokens", "Tokens sampled for this head's generations.")
DRAFTED = Counter("shunt_engine_drafted_tokens", "Guesses of next ids that steps carried.")
ACCEPTED = Counter("shunt_engine_accepted_tokens", "Guesses that were right.")
REPLAYED = Counter("shunt_engine_replayed_tokens", "Output ids read again from what calls held.")
DIVERGED = Counter(
    "shunt_engine_diverged", "Generations ended because two holders of one position disagreed."
)
BATCH = Histogram(
    "shunt_engine_decode_batch",
    "Sequences decoded in a step.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
RUNNING = Gauge("shunt_engine_running", "Sequences in the running batch.")
QUEUED = Gauge("shunt_engine_queued", "Sequences that wait for a place.")
USED_BLOCKS = Gauge("shunt_engine_used_kv_blocks", "KV cache blocks in use.")
CACHED_BLOCKS = Gauge(
    "shunt_engine_cached_kv_blocks", "KV cache blocks that no sequence uses and one may come for."
)
PREFIX_QUERIES = Counter(
    "shunt_engine_prefix_queries", "Positions of sequences that came into the batch."
)
PREFIX_HITS = Counter("shunt_engine_prefix_hits", "Those of them that were computed already.")
PREFIX_EVICTIONS = Counter(
    "shunt_engine_prefix_evictions", "KV cache blocks that lost what they held to make room."
)
PREFIX_FETCHES = Counter(
    "shunt_engine_prefix_fetches",
    "Beginnings of prompts that were asked of another pipeline, by what came of them.",
    ["outcome"],
)
OFFERED_BLOCKS = Counter(
    "shunt_engine_offered_kv_blocks", "KV cache blocks that were kept for other pipelines to fetch."
)
FORMATIONS_ENDED = Counter("shunt_engine_formations_ended", "Formations that ended here.")

_BY_PIPELINE = ["model_name", "pipeline"]
_VLLM_RUNNING = Gauge("vllm:num_requests_running", "Sequences in the running batch", _BY_PIPELINE)
_VLLM_WAITING = Gauge("vllm:num_requests_waiting", "Sequences that wait for a place", _BY_PIPELINE)
_VLLM_KV_USAGE = Gauge(
    "vllm:kv_cache_usage_perc", "KV cache blocks in use; 1 is all of them", _BY_PIPELINE
)
_VLLM_QUERIES = Counter(
    "vllm:prefix_cache_queries", "Positions of sequences that came into the batch", _BY_PIPELINE
)
_VLLM_HITS = Counter(
    "vllm:prefix_cache_hits", "Those of them that were computed already", _BY_PIPELINE
)
_VLLM_QUEUE_S = Histogram(
    "vllm:request_queue_time_seconds",
    "From a call at the head to its place in the batch",
    _BY_PIPELINE,
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
_VLLM_PREEMPTIONS = Counter(
    "vllm:num_preemptions", "Places in the batch that were given up for others", _BY_PIPELINE
)


class _PipelineSeries:
    """The series of the pipeline that is headed, under vLLM's names."""

    def __init__(self, model: str, pipeline: str) -> None:
        self.labels = (model, pipeline)
        self.running = _VLLM_RUNNING.labels(*self.labels)
        self.waiting = _VLLM_WAITING.labels(*self.labels)
        self.kv_usage = _VLLM_KV_USAGE.labels(*self.labels)
        self.queries = _VLLM_QUERIES.labels(*self.labels)
        self.hits = _VLLM_HITS.labels(*self.labels)
        self.queue_s = _VLLM_QUEUE_S.labels(*self.labels)
        self.preemptions = _VLLM_PREEMPTIONS.labels(*self.labels)

    def drop(self) -> None:
        """Nothing is told of it from now on: another head has it."""
        gauges = (_VLLM_RUNNING, _VLLM_WAITING, _VLLM_KV_USAGE)
        counts = (_VLLM_QUERIES, _VLLM_HITS, _VLLM_QUEUE_S, _VLLM_PREEMPTIONS)
        for metric in (*gauges, *counts):
            metric.remove(*self.labels)


class Counters:
    """Counts since the process started."""

    def __init__(self) -> None:
        self.steps = 0
        self.sampled_tokens = 0
        self.decoded_sequences = 0
        self.decode_steps = 0
        self.replayed_tokens = 0
        self.prefix = CacheUse()
        self.computed_s = self.stepped_s = 0.0
        """Of this stage's steps: time on a core, and all that they took with waits and rests."""
        self._diverged = 0
        self._pipeline: _PipelineSeries | None = None
        self._preemptions = 0
        """Of the formation that is headed, as they were told last."""

    def formed(self, model: str, pipeline: str) -> None:
        """This process heads a pipeline."""
        self._preemptions = 0
        if self._pipeline is None or self._pipeline.labels != (model, pipeline):
            self.dissolved()
            self._pipeline = _PipelineSeries(model, pipeline)

    def dissolved(self) -> None:
        """It heads none any more."""
        if self._pipeline is not None:
            self._pipeline.drop()
            self._pipeline = None

    def admitted(self, waited_s: float) -> None:
        """A sequence came into the batch for the first time."""
        if self._pipeline is not None:
            self._pipeline.queue_s.observe(waited_s)

    def departed(self, step: Step) -> None:
        """A step began."""
        self.steps += 1
        STEPS.inc()
        if step.decodes:
            self.decode_steps += 1
            self.decoded_sequences += step.decodes
            BATCH.observe(step.decodes)
        DRAFTED.inc(step.drafted)
        if step.replayed:
            self.replayed_tokens += step.replayed
            REPLAYED.inc(step.replayed)
        self.prefix.add(step.cache)
        PREFIX_QUERIES.inc(step.cache.queried)
        PREFIX_HITS.inc(step.cache.hits)
        PREFIX_EVICTIONS.inc(step.cache.evicted)
        if self._pipeline is not None:
            self._pipeline.queries.inc(step.cache.queried)
            self._pipeline.hits.inc(step.cache.hits)

    def came_back(self, tokens: int, accepted: int) -> None:
        """A step brought this many tokens, so many of them by guesses that were right."""
        self.sampled_tokens += tokens
        SAMPLED.inc(tokens)
        ACCEPTED.inc(accepted)

    def stepped(self, computed_s: float, took_s: float) -> None:
        """This stage made a step."""
        self.computed_s += computed_s
        self.stepped_s += took_s

    def diverged(self, total: int) -> None:
        """So many generations of this head have diverged so far."""
        DIVERGED.inc(total - self._diverged)
        self._diverged = total

    def gauge(self, scheduler: Scheduler | None) -> None:
        """Shows the running batch as it is now."""
        RUNNING.set(scheduler.running if scheduler else 0)
        QUEUED.set(scheduler.queued if scheduler else 0)
        USED_BLOCKS.set(scheduler.used_blocks if scheduler else 0)
        CACHED_BLOCKS.set(scheduler.blocks.cached_count if scheduler else 0)
        if scheduler is None or self._pipeline is None:
            return
        self._pipeline.running.set(scheduler.running)
        self._pipeline.waiting.set(scheduler.queued)
        self._pipeline.kv_usage.set(scheduler.used_blocks / scheduler.blocks.count)
        self._pipeline.preemptions.inc(scheduler.preemptions - self._preemptions)
        self._preemptions = scheduler.preemptions
