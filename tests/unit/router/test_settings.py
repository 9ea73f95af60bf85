from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.router.__main__ import doorkeeper_of
from services.router.settings import RouterSettings, check_reach


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "router.internal", ""])
def test_a_router_that_strangers_reach_asks_for_keys_or_is_told_in_words(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        check_reach(RouterSettings(host=host))
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "bad setting SHUNT_ROUTER_KEYS: " in told
    assert "SHUNT_ROUTER_OPEN=true" in told
    check_reach(RouterSettings(host=host, open=True))
    check_reach(RouterSettings(host=host, keys=Path("keys.json")))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_nobody_is_asked(host: str) -> None:
    check_reach(RouterSettings(host=host))


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_router_that_has_no_file_of_keys_to_read_does_not_start(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Any = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        doorkeeper_of(RouterSettings(keys=path))
    assert stop.value.code == 2
    assert "bad setting SHUNT_ROUTER_KEYS: " in capsys.readouterr().err
