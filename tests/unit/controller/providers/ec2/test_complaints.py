from __future__ import annotations

import logging

import pytest

from services.controller.providers.ec2.complaints import Complaints
from services.controller.providers.ec2.failures import Matter, Refusal


def test_a_failure_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(logging.getLogger("test"))
    quota = Refusal(Matter.OPERATOR, "VcpuLimitExceeded", "8 of 8")
    for _ in range(3):
        complaints.about("launch", quota)
    complaints.about("look", quota)
    complaints.about("launch", Refusal(Matter.THROTTLED, "Throttling", "slower"))
    assert [one.levelno for one in caplog.records] == [
        logging.ERROR,
        logging.ERROR,
        logging.WARNING,
    ]
    complaints.over("launch")
    complaints.about("launch", quota)
    complaints.about("look", quota)
    assert len(caplog.records) == 4
