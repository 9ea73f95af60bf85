from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.cli.certs import local
from services.cli.certs.authority import LIFE, Wish, hosts_of, identity_from
from services.cli.certs.directory import (
    AuthorityDirectory,
    create_authority,
    holders,
    read,
    read_issued_in,
    write,
)
from services.cli.certs.renewing import Source, keep
from services.common.errors import FailedPrecondition
from services.common.settings import TlsSettings
from services.engine.settings import EngineSettings
from services.router.settings import RouterSettings


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Made yesterday; a certificate of the router is due."""
    path, day = tmp_path / "a", timedelta(days=1)
    create_authority(path, "mesh-1", 30, datetime.now(UTC) - day)
    wish = Wish(identity_from("router"), hosts_of(["10.0.0.7"]), LIFE)
    write(AuthorityDirectory(path).issue(wish, datetime.now(UTC) - 0.9 * LIFE), path / "router")
    return path


def test_everybody_has_a_young_certificate(authority: Path) -> None:
    old = read(authority / "router")
    local.equip(authority)
    names = [path.name for path in holders(authority)]
    assert names == ["controller", "engine", "operator", "placement", "router", "tensorstore"]
    for home in holders(authority):
        assert not read_issued_in(home).is_due(datetime.now(UTC))
    assert read(authority / "router") != old
    assert "10.0.0.7" in read_issued_in(authority / "router").wish.hosts
    before = {home: read(home) for home in holders(authority)}
    local.equip(authority)
    assert before == {home: read(home) for home in holders(authority)}


def test_each_service_reads_its_own_and_everything_else_the_operators(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.equip(authority)
    for name, value in local.environment(authority).items():
        monkeypatch.setenv(name, value)
    assert TlsSettings().key == authority / "operator" / "key.pem"
    # As an engine finds it that the controller has launched.
    for name in ("certificate", "key", "authority"):
        monkeypatch.setenv(TlsSettings.name_of(name), str(authority / "controller" / f"{name}.pem"))
    given = {"controller": "a:1", "store": "grpc://a:2", "node_id": "n"}
    assert EngineSettings.model_validate(given).tls.key == authority / "engine" / "key.pem"
    assert RouterSettings().tls.key == authority / "router" / "key.pem"


def test_without_an_authority_nobody_is_equipped(tmp_path: Path, authority: Path) -> None:
    with pytest.raises(FailedPrecondition, match="shunt certs init"):
        local.equip(tmp_path)
    (authority / "router" / "certificate.pem").write_bytes(b"")
    with pytest.raises(FailedPrecondition, match="router: it names no role"):
        local.equip(authority)


async def test_they_are_kept_young(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PAUSE_S", 0.0)
    old, looks = read(authority / "router"), list[Path]()
    looked, loop = asyncio.Event(), asyncio.get_running_loop()

    def seen(source: Source, directory: Path, now: datetime) -> None:
        keep(source, directory, now)
        looks.append(directory)
        if len(looks) == 2:
            loop.call_soon_threadsafe(looked.set)

    monkeypatch.setattr(local, "keep", seen)
    keeping = asyncio.create_task(local.keep_young(authority))
    async with asyncio.timeout(60):
        await looked.wait()
    assert read(authority / "router") != old
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
