"""What a router counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("shunt_router_requests", "HTTP answers", ["route", "status"])
STREAMS = Gauge("shunt_router_streams", "Generations followed now", ["model"])
TOKENS = Counter("shunt_router_tokens", "Tokens received for readers", ["model"])
RESUMES = Counter("shunt_router_resumes", "Questions for the next epoch", ["model"])
JOINED = Counter(
    "shunt_router_joined", "Retries that went on with what their first ask began", ["model"]
)
MOVES = Counter("shunt_router_moves", "Epochs granted to generations that ended here", ["model"])
FAILED = Counter(
    "shunt_router_failed",
    "Streams that ended in an error that no reader asked for",
    ["kind", "model"],
)
FIRST_TOKEN_S = Histogram(
    "shunt_router_first_token_seconds",
    "From a request, at either door, to its first token",
    ["model"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
