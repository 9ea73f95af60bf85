"""What Prometheus asks a process for, over HTTP, in threads that outlive a loop that hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from prometheus_client import start_http_server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

Page = Callable[[], bytes]
"""A JSON document as it is at the moment of asking; called in any thread."""
NO_PAGES: Mapping[str, Page] = MappingProxyType({})


def serve(host: str, port: int, pages: Mapping[str, Page]) -> int:
    """Answers until the process ends, on the port that is returned; 0 draws one. `pages` stand
    beside the metrics, by path. Raises OSError."""
    server, _ = start_http_server(port, addr=host)
    metrics = server.get_app()
    assert metrics is not None

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        page = pages.get(environ.get("PATH_INFO", ""))
        if page is None:
            # In OpenMetrics, which Prometheus 2 asks for, the library writes vllm_ for vllm:.
            return metrics({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [page()]

    server.set_app(answer)
    return server.server_port
