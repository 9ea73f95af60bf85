from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import fidelity
from bench.fidelity import Load, outside


def account(bias: float = 0.0, late: float = 0.0, **more: Any) -> dict[str, Any]:
    metric = {"p50_bias": bias, "p90_bias": 0.0, "p99_bias": late}
    metrics = {"ttft_s": metric, "tpot_s": metric, "e2e_s": metric}
    return {"finished": (9, 9), "moved": (2, 2), "throughput_bias": 0.0, "metrics": metrics, **more}


@pytest.mark.parametrize(
    ("replay", "repeated", "wrong"),
    [
        (account(0.049, -0.099), account(), []),
        (account(-0.051), account(), ["ttft_s p50: -5.1%", "e2e_s p50: -5.1%"]),
        (account(0.0, 0.11), account(), ["ttft_s p99: +11.0%", "e2e_s p99: +11.0%"]),
        (account(0.14, 0.29), account(-0.1, 0.2), []),
        (account(0.16), account(-0.1), ["ttft_s p50: +16.0%", "e2e_s p50: +16.0%"]),
        (account(throughput_bias=-0.031), account(), ["tokens/s: -3.1%"]),
        (account(throughput_bias=-0.031), account(throughput_bias=0.025), []),
        (account(finished=(9, 8)), account(), ["finished: 8"]),
        (account(moved=(2, 3)), account(), ["moved: 3"]),
    ],
)
def test_what_is_outside_its_bounds_is_told(
    replay: dict[str, Any], repeated: dict[str, Any], wrong: list[str]
) -> None:
    told = outside({"replay": replay, "repeated": repeated})
    assert [one.split(",")[0] for one in told] == wrong


def test_who_kept_recordings_may_measure_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, places = tmp_path / "kept", list[Path]()

    async def measured(data_dir: Path, out: Path, load: Load) -> dict[str, Any]:
        assert kept not in data_dir.parents, "the mesh is a new one"
        places.append(out)
        return {"replay": account(), "repeated": account()}

    monkeypatch.setattr(fidelity, "measured", measured)
    monkeypatch.setattr("sys.argv", ["fidelity", "--keep", str(kept)])
    for _ in range(2):
        fidelity.main()
    assert places == [kept, kept]
    assert capsys.readouterr().out.count('"outside": []') == 2
