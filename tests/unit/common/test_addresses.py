from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.addresses import (
    MAX_CONTROLLERS,
    addresses_of,
    checked_address,
    checked_addresses,
)
from services.controller.settings import ControllerSettings
from services.router.settings import RouterSettings


def test_each_address_is_had() -> None:
    assert addresses_of(checked_addresses("a:1,[::1]:2")) == ("a:1", "[::1]:2")
    assert addresses_of("") == ()


@pytest.mark.parametrize("text", ["", "a", "a:", "a:1,", "a:1, b:2", "a:123456"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is host:port"):
        checked_addresses(text)


def test_there_is_a_limit_and_it_is_named() -> None:
    many = ",".join(f"h:{n}" for n in range(MAX_CONTROLLERS + 1))
    with pytest.raises(ValueError, match=f"up to {MAX_CONTROLLERS}"):
        checked_addresses(many)


def test_routers_name_a_bad_one() -> None:
    assert RouterSettings(controller_address="a:1,b:2").controllers == ("a:1", "b:2")
    with pytest.raises(ValidationError, match="controller_address"):
        RouterSettings(controller_address="a;b")


@pytest.mark.parametrize("text", ["", "host", "a:1,b:2"])
def test_a_service_that_is_one_has_one_address(text: str) -> None:
    assert checked_address("dns:///placement:7003") == "dns:///placement:7003"
    with pytest.raises(ValueError, match="is host:port"):
        checked_address(text)
    with pytest.raises(ValidationError, match="tensorstore_address"):
        RouterSettings(tensorstore_address=text)
    for name in ("tensorstore_address", "placement_address", "launcher_address"):
        with pytest.raises(ValidationError, match=name):
            ControllerSettings(**{"data_dir": Path(), name: text})  # type: ignore[arg-type]
