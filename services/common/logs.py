"""Structured logs: one JSON object a line, never any prompt or completion text.

Lines about a request or a generation carry its ids, so that whoever holds one of them finds every
line by it. One kind of line that comes in thousands is thinned out and counted; a file that only
this process writes is bounded.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

from opentelemetry import trace

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_FIELD_LIMIT_CHARS = 500
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
REQUEST_ID_HEADER = "x-request-id"
"""The name under which HTTP headers and gRPC metadata carry a request's id."""
FILE_LIMIT_VARIABLE = "SHUNT_LOG_FILE_BYTES"
"""Set by whoever makes stderr a file of this process's own: the size at which a new one begins."""
FILE_LIMIT_BYTES = 16 << 20
BURST_LINES = 100
LINES_PER_S = 10.0
MAX_KINDS = 1024

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
access = logging.getLogger("shunt.access")
"""One line a request, or a generation: these are never thinned out."""


def about(**ids: str) -> None:
    """Every line from here on in this context, and in the tasks that begin in it, carries these."""
    _about.set({**_about.get(), **ids})


def request_id() -> str:
    """The id of the request that is being served; empty outside of one."""
    return _about.get().get("request_id", "")


def request_id_from(value: str) -> str:
    """A client's own id when it is one that may stand in headers and logs, else a new one."""
    return value if _REQUEST_ID.fullmatch(value) else f"req_{secrets.token_hex(16)}"


class JsonFormatter(logging.Formatter):
    """Renders a record and its extra fields as one line; control characters are escaped by JSON."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage()[:_FIELD_LIMIT_CHARS],
        }
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
        line.update(_about.get())
        for key, value in vars(record).items():
            if key not in _RESERVED:
                line[key] = value if isinstance(value, (int, float, bool)) else _short(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _short(value: object) -> str:
    return str(value)[:_FIELD_LIMIT_CHARS]


class Thinning(logging.Filter):
    """Lets `LINES_PER_S` lines of a kind pass, and `BURST_LINES` at once; the next one that passes
    tells how many did not. A kind is a logger and an unformatted message."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, str], tuple[float, float, int]] = {}
        """Lines that may pass, as of when, and how many have not."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == access.name:
            return True
        kind, now_s = (record.name, str(record.msg)[:_FIELD_LIMIT_CHARS]), self._clock()
        room, then_s, dropped = self._kinds.pop(kind, (BURST_LINES, now_s, 0))
        room = min(BURST_LINES, room + (now_s - then_s) * LINES_PER_S)
        passes = room >= 1
        self._kinds[kind] = (room - 1, now_s, 0) if passes else (room, now_s, dropped + 1)
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        if passes and dropped:
            record.lines_left_out = dropped
        return passes


class StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr. Where that is a file with a limit, a new file begins when it is reached and
    the old one stays beside it: two of them are the most there is."""

    def __init__(self, limit_bytes: int = 0) -> None:
        super().__init__(sys.stderr)
        self._limit_bytes = limit_bytes

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self._limit_bytes:
            descriptor = self.stream.fileno()
            if os.fstat(descriptor).st_size >= self._limit_bytes:
                self._begin_anew(descriptor)

    def _begin_anew(self, descriptor: int) -> None:
        try:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            path.replace(path.with_suffix(f".1{path.suffix}"))
            new = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.dup2(new, descriptor)
            finally:
                os.close(new)
        except OSError:
            self._limit_bytes = 0  # whose name it is nobody can tell: it goes on as it is


def configure(service: str, level: str) -> None:
    """Sends every logger's records to stderr as JSON lines."""
    limit = os.environ.get(FILE_LIMIT_VARIABLE, "")
    handler = StderrHandler(int(limit) if limit.isdecimal() else 0)
    handler.setFormatter(JsonFormatter(service))
    handler.addFilter(Thinning())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
