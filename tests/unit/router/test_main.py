from __future__ import annotations

import gc

import pytest

from services.router import __main__ as router
from services.router.__main__ import listen
from services.router.settings import RouterSettings


def test_a_taken_http_port_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    settings = RouterSettings()
    with listen(settings, "127.0.0.1", 0, "http_port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            listen(settings, "127.0.0.1", port, "http_port")
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert f"bad setting SHUNT_ROUTER_HTTP_PORT: 127.0.0.1:{port}: Address already in use" in told


async def test_no_collection_looks_at_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did would hold every stream for a tenth of a second, again and again."""

    class Begun(Exception):
        pass

    def running(_: RouterSettings) -> None:
        raise Begun

    monkeypatch.setattr(router, "running", running)
    gc.unfreeze()
    try:
        with pytest.raises(Begun):
            await router.serve(RouterSettings())
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
