from __future__ import annotations

import json
import urllib.request
from typing import Any

from prometheus_client import REGISTRY, Gauge

from services.common import metrics_page


def _get(url: str, accept: str = "*/*") -> tuple[str, bytes]:
    asked = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 200
        return answer.headers["Content-Type"], answer.read()


def test_a_page_stands_beside_the_metrics_and_is_made_anew_each_time() -> None:
    groups: list[Any] = []
    port = metrics_page.serve("127.0.0.1", 0, {"/targets": lambda: json.dumps(groups).encode()})
    url = f"http://127.0.0.1:{port}"
    assert _get(f"{url}/targets") == ("application/json", b"[]")
    groups.append({"targets": ["h:1"]})
    assert json.loads(_get(f"{url}/targets")[1]) == groups
    kind, body = _get(f"{url}/metrics")
    assert kind.startswith("text/plain")
    assert b"process_start_time_seconds" in body


def test_a_colon_in_a_name_is_one_for_every_prometheus() -> None:
    counted = Gauge("vllm:shown_as_it_is", "A name of vLLM's")
    url = f"http://127.0.0.1:{metrics_page.serve('127.0.0.1', 0, {})}/metrics"
    try:
        for accept in (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6",
        ):
            assert b"\nvllm:shown_as_it_is 0.0" in _get(url, accept)[1]
    finally:
        REGISTRY.unregister(counted)
