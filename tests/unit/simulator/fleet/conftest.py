from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MARKET: dict[str, Any] = {
    "offers": [
        {
            "id": "firm",
            "instance_type": "g6e.xlarge",
            "pool": "firm",
            "count": 1,
            "price_per_hour": 1.8,
            "launch_s": 10,
        },
        {
            "id": "spot",
            "instance_type": "g6e.xlarge",
            "pool": "spot",
            "spot": True,
            "count": 2,
            "price_per_hour": 0.7,
            "launch_s": 10,
        },
    ],
    "events": [
        {"at_s": 40, "offer": "spot", "take": 1, "notice_s": 0},
        {"at_s": 60, "offer": "spot", "price_per_hour": 0.9},
        {"at_s": 80, "offer": "spot", "take": 1, "notice_s": 60},
    ],
}
SCENARIO: dict[str, Any] = {
    "version": 1,
    "market": "market.yaml",
    "model": "llama-3.1-8b",
    "workload": {
        "generator": {"requests": 100, "rate_rps": 1.0, "input_mean": 400, "output_mean": 150}
    },
    "objective": {"ttft_s": 2.0, "tpot_s": 0.1},
    "horizon_s": 200,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A scenario and its market as files; fields of the scenario by name."""

    def written(market: dict[str, Any] | None = None, **fields: Any) -> Path:
        (tmp_path / "market.yaml").write_text(yaml.safe_dump(market or MARKET, sort_keys=False))
        path = tmp_path / "scenario.yaml"
        path.write_text(yaml.safe_dump(SCENARIO | fields, sort_keys=False))
        return path

    return written
