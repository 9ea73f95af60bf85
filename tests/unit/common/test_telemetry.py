from __future__ import annotations

import logging
import re
import socket
import urllib.request

import pytest

from services.common import telemetry


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
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
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
