from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bench import otlp
from services.common import telemetry

ENDS_S = 60.0
"""It takes 2 s on an idle machine; exporters left alone wait 10 s a try, and 5 s more."""


def test_port_0_gives_each_process_metrics_of_its_own_and_the_log_tells_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        telemetry.configure("engine", "node-1", metrics_host="127.0.0.1", metrics_port=0)
    addresses = {vars(record)["address"] for record in caplog.records}
    assert len(addresses) == 2
    for address in addresses:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
            assert answer.status == 200


def test_a_taken_port_for_metrics_names_its_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            telemetry.configure("engine", "node-1", metrics_host="127.0.0.1", metrics_port=port)
    assert stop.value.code == 2
    assert "bad setting SHUNT_ENGINE_METRICS_PORT: " in capsys.readouterr().err


SENDS = """
import signal, sys, time
from services.common import telemetry
telemetry.configure("engine", "node-1", metrics_host="127.0.0.1", metrics_port=None)
for _ in range(2000):
    with telemetry.span("a span"):
        pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    print("sent", flush=True)
    time.sleep(600)
finally:
    began_s = time.monotonic()
    telemetry.shutdown()
    print(time.monotonic() - began_s)
"""


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Sets these variables of the standard and no others."""
    monkeypatch.setenv("NO_PROXY", "*")

    def tell(variables: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)

    return tell


def _send_a_span() -> None:
    exporter = telemetry._exporter()
    assert exporter is not None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.get_tracer("test").start_span("a span").end()
    provider.shutdown()


@pytest.fixture
def over_http() -> Iterator[otlp.HttpReceiver]:
    receiver = otlp.HttpReceiver()
    yield receiver
    receiver.stop()


def _variables(receiver: otlp.HttpReceiver) -> list[dict[str, str]]:
    base, full = receiver.endpoint, f"{receiver.endpoint}/v1/traces"
    return [
        {"ENDPOINT": base, "PROTOCOL": "http/protobuf"},
        {"ENDPOINT": f"{base}/", "PROTOCOL": "http/protobuf"},
        {"TRACES_ENDPOINT": full, "TRACES_PROTOCOL": "http/protobuf"},
        {"TRACES_ENDPOINT": full, "PROTOCOL": "http/protobuf"},
        {"ENDPOINT": base, "PROTOCOL": "grpc", "TRACES_PROTOCOL": "http/protobuf"},
        {"ENDPOINT": "http://127.0.0.1:1", "TRACES_ENDPOINT": full, "PROTOCOL": "http/protobuf"},
        {"ENDPOINT": base, "PROTOCOL": "http/protobuf", "COMPRESSION": "gzip"},
    ]


def test_spans_go_out_over_http_as_the_standards_variables_say(
    over_http: otlp.HttpReceiver, told: Callable[[dict[str, str]], None]
) -> None:
    for number, variables in enumerate(_variables(over_http), 1):
        told(variables)
        _send_a_span()
        assert [span.name for span in over_http.spans()] == ["a span"] * number, variables
        assert over_http.paths[-1] == "/v1/traces"


def test_spans_go_out_over_grpc_unless_told_otherwise(
    told: Callable[[dict[str, str]], None],
) -> None:
    receiver = otlp.Receiver()
    try:
        for variables in ({}, {"PROTOCOL": "grpc"}, {"TRACES_PROTOCOL": "grpc"}):
            told({"ENDPOINT": receiver.endpoint, **variables})
            _send_a_span()
        assert [span.name for span in receiver.spans()] == ["a span"] * 3
    finally:
        receiver.stop()


@pytest.mark.parametrize(
    ("endpoint", "protocol", "kind"),
    [
        ("http://h:4318", "", "http"),
        ("http://h:4318", "grpc", "grpc"),
        ("http://h:4317", "", "grpc"),
        ("http://h:4317", "http/protobuf", "http"),
        ("http://h", "", "grpc"),
        ("h:4317", "", "grpc"),
    ],
)
def test_the_port_tells_the_protocol_where_nothing_else_does(
    told: Callable[[dict[str, str]], None], endpoint: str, protocol: str, kind: str
) -> None:
    told({"ENDPOINT": endpoint, "PROTOCOL": protocol})
    exporter = telemetry._exporter()
    assert exporter is not None
    assert f".{kind}." in type(exporter).__module__
    exporter.shutdown()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ENDPOINT": "http://h:1", "PROTOCOL": "http/json"}, "PROTOCOL"),
        ({"ENDPOINT": "http://h:1", "PROTOCOL": "grpc", "TRACES_PROTOCOL": "x"}, "TRACES_PROTOCOL"),
        ({"ENDPOINT": "h:4318"}, "ENDPOINT"),
        ({"ENDPOINT": "http://h:99999"}, "ENDPOINT"),
    ],
)
def test_what_cannot_be_had_is_named(
    told: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    named: str,
) -> None:
    told(variables)
    with pytest.raises(SystemExit) as stop:
        telemetry._exporter()
    assert stop.value.code == 2
    assert f"bad setting OTEL_EXPORTER_OTLP_{named}: " in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_never_answers_keeps_no_service_from_ending(
    told: Callable[[dict[str, str]], None], protocol: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        told({"ENDPOINT": endpoint, "PROTOCOL": protocol})
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [sys.executable, "-c", SENDS], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "sent\n"
            process.send_signal(signal.SIGTERM)
            took_s, _ = process.communicate(timeout=ENDS_S)
    assert process.returncode == 0
    # Left alone, every batch that waits has the whole of it, and there are four.
    assert float(took_s) < 3 * telemetry._EXPORT_TIMEOUT_S
