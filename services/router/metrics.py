"""What a router counts, under its own names and, where they mean the same, under vLLM's
(docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from services.router.core.bounded_names import BoundedNames
from services.router.core.latencies import CAUSES, Ended, Heard, Moved

_REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WHOLE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_TOKEN_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_MOVE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60)
_BY_PIPELINE = ["model_name", "pipeline"]

REQUESTS = Counter("shunt_router_requests", "HTTP answers", ["route", "status"])
UNAUTHENTICATED = Counter(
    "shunt_router_unauthenticated", "Requests that showed no key of ours", ["door"]
)
KEYS_KEPT = Gauge(
    "shunt_router_keys_kept", "1 while the file of keys cannot be used and older ones count"
)
STREAMS = Gauge("shunt_router_streams", "Generations followed now", ["model"])
TOKENS = Counter("shunt_router_tokens", "Tokens received for readers", ["model"])
RESUMES = Counter("shunt_router_resumes", "Questions for the next epoch", ["model"])
JOINED = Counter(
    "shunt_router_joined", "Retries that went on with what their first ask began", ["model"]
)
MOVES = Counter("shunt_router_moves", "Epochs granted to generations that ended here", ["model"])
ARITHMETIC_CHANGED = Counter(
    "shunt_router_arithmetic_changed",
    "Generations that went on under another numerics class",
    ["model"],
)
PREFIX_FOUND = Counter(
    "shunt_router_prefix_found",
    "Prompt positions that the pipeline a prompt went to had computed, as its head told",
    ["model"],
)
BATCH_LINES = Counter(
    "shunt_router_batch_lines",
    "Lines of batches that got their result here: answered, failed, or left unasked",
    ["outcome"],
)
BATCH_LINES_UNDER_WAY = Gauge(
    "shunt_router_batch_lines_under_way", "Lines of batches that were asked and have no answer yet"
)
BATCH_WINDOW = Gauge(
    "shunt_router_batch_window", "Lines of batches that may be under way: what live requests leave"
)
FAILED = Counter(
    "shunt_router_failed",
    "Streams that ended in an error that no reader asked for",
    ["kind", "model"],
)
REFUSED = Counter(
    "shunt_router_refused",
    "Requests that were refused for the load, by what they lacked: a place, or the time",
    ["reason"],
)
WAITING = Gauge("shunt_router_waiting", "Requests that wait here for a pipeline")
FIRST_TOKEN_OVER_PREDICTED = Histogram(
    "shunt_router_first_token_over_predicted",
    "How long a first token took, over what was predicted when its request was sent",
    ["model"],
    buckets=(0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 4),
)
FIRST_TOKEN_S = Histogram(
    "shunt_router_first_token_seconds",
    "From a request, at either door, to its first token",
    ["model"],
    buckets=_REQUEST_BUCKETS_S,
)
ROUTE_WAIT_S = Histogram(
    "shunt_router_route_wait_seconds",
    "From a request to the pipeline that takes it",
    ["model"],
    buckets=(0.001, *_REQUEST_BUCKETS_S),
)


class ModelSeries:
    """What is counted of one model with every request, each series looked up once."""

    def __init__(self, model: str) -> None:
        self.streams = STREAMS.labels(model)
        self.tokens = TOKENS.labels(model)
        self.prefix_found = PREFIX_FOUND.labels(model)
        self.first_token_s = FIRST_TOKEN_S.labels(model)
        self.first_token_over_predicted = FIRST_TOKEN_OVER_PREDICTED.labels(model)
        self.route_wait_s = ROUTE_WAIT_S.labels(model)


@cache
def of_model(model: str) -> ModelSeries:
    """Those of a model that was found; nothing is told of others."""
    return ModelSeries(model)


_MIGRATION = "shunt_router_migration"
_DETECTION_S = Histogram(
    f"{_MIGRATION}_detection_seconds",
    "From the last frame of a head to the question for another one",
    ["model", "cause"],
    buckets=_MOVE_BUCKETS_S,
)
_GRANT_S = Histogram(
    f"{_MIGRATION}_grant_seconds",
    "From the question for another head to the controller's answer",
    ["model", "cause"],
    buckets=_MOVE_BUCKETS_S,
)
_REPLAY_S = Histogram(
    f"{_MIGRATION}_replay_seconds",
    "From the answer to the first token of the other head, which reads again what there was",
    ["model", "cause"],
    buckets=_MOVE_BUCKETS_S,
)
_GAP_S = Histogram(
    f"{_MIGRATION}_gap_seconds",
    "What a reader sees of it: from the old head's last token to the new one's first",
    ["model", "cause"],
    buckets=_MOVE_BUCKETS_S,
)

_TTFT_S = Histogram(
    "vllm:time_to_first_token_seconds",
    "From a request to its first token, by the pipeline that gave it",
    _BY_PIPELINE,
    buckets=_REQUEST_BUCKETS_S,
)
_ITL_S = Histogram(
    "vllm:inter_token_latency_seconds",
    "From token to token as a reader sees it, moves included",
    _BY_PIPELINE,
    buckets=_TOKEN_BUCKETS_S,
)
_TPOT_S = Histogram(
    "vllm:request_time_per_output_token_seconds",
    "Of a request that ended well: the mean time of a token behind its first",
    _BY_PIPELINE,
    buckets=_TOKEN_BUCKETS_S,
)
_E2E_S = Histogram(
    "vllm:e2e_request_latency_seconds",
    "From a request to its end, where that is a good one, by the pipeline it ended at",
    _BY_PIPELINE,
    buckets=_WHOLE_BUCKETS_S,
)
_PROMPT_TOKENS = Counter(
    "vllm:prompt_tokens", "Prompt tokens of requests that have had a token", _BY_PIPELINE
)
_GENERATION_TOKENS = Counter(
    "vllm:generation_tokens", "Tokens that heads sent to their readers", _BY_PIPELINE
)
_SUCCESS = Counter(
    "vllm:request_success",
    "Choices of requests that ended well, by how",
    [*_BY_PIPELINE, "finished_reason"],
)


def show_model(model: str) -> None:
    """Its moves are told from 0 on: a rise from nothing would be no rise."""
    for cause in CAUSES:
        for metric in (_DETECTION_S, _GRANT_S, _REPLAY_S, _GAP_S):
            metric.labels(model, cause)


def count_move(model: str, moved: Moved) -> None:
    _DETECTION_S.labels(model, moved.cause).observe(moved.detection_s)
    _GRANT_S.labels(model, moved.cause).observe(moved.grant_s)
    _REPLAY_S.labels(model, moved.cause).observe(moved.replay_s)
    _GAP_S.labels(model, moved.cause).observe(moved.gap_s)


_TENANT_REQUESTS = Counter(
    "shunt_router_tenant_requests", "Generations that were asked for, by whom", ["tenant"]
)
_TENANT_TOKENS = Counter(
    "shunt_router_tenant_tokens",
    "Tokens of prompts, and those of answers, by whose",
    ["tenant", "of"],
)
_TENANT_FIRST_TOKEN_S = Histogram(
    "shunt_router_tenant_first_token_seconds",
    "From a request to its first token, by whose",
    ["tenant"],
    buckets=_REQUEST_BUCKETS_S,
)


class _OneTenant:
    """The series of one name, each looked up once."""

    def __init__(self, name: str) -> None:
        self.requests = _TENANT_REQUESTS.labels(name)
        self.prompt_tokens = _TENANT_TOKENS.labels(name, "prompt")
        self.answer_tokens = _TENANT_TOKENS.labels(name, "answer")
        self.first_token_s = _TENANT_FIRST_TOKEN_S.labels(name)


_of_tenant = cache(_OneTenant)


class TenantSeries:
    """Of the first so many tenants each by its name, of all that come later together."""

    def __init__(self, most: int) -> None:
        self._names = BoundedNames(most)

    def asked(self, tenant: str) -> None:
        """A generation was begun; for nobody, where none is asked for a key."""
        if tenant:
            _of_tenant(self._names.of(tenant)).requests.inc()

    def heard(self, tenant: str, heard: Heard, prompt_tokens: int, tokens: int) -> None:
        """A frame brought tokens of a request of so long a prompt."""
        if not tenant:
            return
        series = _of_tenant(self._names.of(tenant))
        series.answer_tokens.inc(tokens)
        if heard.first_token_s is not None:
            series.prompt_tokens.inc(prompt_tokens)
            series.first_token_s.observe(heard.first_token_s)


class PipelineSeries:
    """The series of one pipeline, each looked up once."""

    def __init__(self, model: str, pipeline: str) -> None:
        self._labels = (model, pipeline)
        self._ttft_s = _TTFT_S.labels(model, pipeline)
        self._itl_s = _ITL_S.labels(model, pipeline)
        self._generated = _GENERATION_TOKENS.labels(model, pipeline)
        self._prompts = _PROMPT_TOKENS.labels(model, pipeline)

    def heard(self, heard: Heard, prompt_tokens: int, tokens: int) -> None:
        """A frame brought tokens of a request of so long a prompt."""
        model, _ = self._labels
        self._generated.inc(tokens)
        if heard.first_token_s is not None:
            self._ttft_s.observe(heard.first_token_s)
            of_model(model).first_token_s.observe(heard.first_token_s)
            self._prompts.inc(prompt_tokens)
        if heard.between_s is not None:
            self._itl_s.observe(heard.between_s)
        if heard.moved is not None:
            count_move(model, heard.moved)

    def ended(self, ended: Ended, reasons: Iterable[str]) -> None:
        """A request ended well, its choices for these reasons."""
        for reason in reasons:
            _SUCCESS.labels(*self._labels, reason).inc()
        if ended.whole_s is not None:
            _E2E_S.labels(*self._labels).observe(ended.whole_s)
        if ended.per_token_s is not None:
            _TPOT_S.labels(*self._labels).observe(ended.per_token_s)

    def drop(self) -> None:
        """The pipeline is no more: nothing is told of it from now on."""
        model, pipeline = self._labels
        of_pipeline = (_TTFT_S, _ITL_S, _TPOT_S, _E2E_S, _PROMPT_TOKENS, _GENERATION_TOKENS)
        for metric in (*of_pipeline, _SUCCESS):
            metric.remove_by_labels({"model_name": model, "pipeline": pipeline})
