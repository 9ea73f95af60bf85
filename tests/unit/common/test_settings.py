from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.common import settings


class _Settings(settings.ServiceSettings):
    model_config = SettingsConfigDict(
        env_prefix="SHUNT_TEST_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUNT_TEST_GRPC_PORT", "4711")
    assert settings.read(_Settings).grpc_port == 4711


def test_a_bad_setting_names_its_field_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHUNT_TEST_GRPC_PORT", "70000")
    with pytest.raises(SystemExit) as stop:
        settings.read(_Settings)
    assert stop.value.code == 2
    assert "SHUNT_TEST_GRPC_PORT" in capsys.readouterr().err


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValidationError):
        settings.read(_Settings).grpc_port = 1  # type: ignore[misc]
