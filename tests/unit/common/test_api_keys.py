from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import api_keys
from services.common.api_keys import KeyFile, KeyRow, Keys, TenantRow
from services.common.errors import InvalidArgument
from services.common.generation import PriorityClass
from services.common.tenants import Limits


def _file(key: str, key_id: str, **row: Any) -> KeyFile:
    empty = KeyFile.empty()
    made = KeyRow(id=key_id, tenant="acme", digest=empty.digest_of(key).hex())
    return KeyFile(
        version=1,
        salt=empty.salt,
        tenants={"acme": TenantRow.model_validate(row)},
        keys=(made,),
    )


def test_a_key_is_known_by_what_the_file_has_of_it_and_no_other_is() -> None:
    key_id, key = api_keys.draw()
    keys = Keys(KeyFile.read(_file(key, key_id).written()))
    tenant = keys.tenant_of(key)
    assert tenant is not None
    assert tenant.name == "acme"
    other = api_keys.draw()[1]
    borrowed = f"shunt-{key_id}-{other[-43:]}"
    for shown in (other, borrowed, key[:-1], key + "x", key.upper(), "", f" {key}", "' OR 1=1--"):
        assert keys.tenant_of(shown) is None


@given(st.text(max_size=80))
def test_whatever_is_shown_gets_an_answer(shown: str) -> None:
    assert Keys(KeyFile.empty()).tenant_of(shown) is None


def test_every_answer_compares_hashes_of_one_length_once(monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, key = api_keys.draw()
    keys = Keys(_file(key, key_id))
    compared: list[tuple[int, int]] = []

    def compare(shown: bytes, right: bytes) -> bool:
        compared.append((len(shown), len(right)))
        return shown == right

    monkeypatch.setattr(api_keys.hmac, "compare_digest", compare)
    for shown in (key, key[:-1] + "_", api_keys.draw()[1], "none at all", ""):
        keys.tenant_of(shown)
    assert compared == [(32, 32)] * 5


def test_no_key_can_be_read_from_its_file_and_equal_keys_differ_between_files() -> None:
    key_id, key = api_keys.draw()
    one, other = _file(key, key_id), _file(key, key_id)
    assert key.encode() not in one.written()
    assert key[-43:].encode() not in one.written()
    assert one.keys[0].digest != other.keys[0].digest


def test_a_tenant_is_what_its_row_says() -> None:
    key_id, key = api_keys.draw()
    row = {
        "class": "tolerant",
        "weight": 3,
        "requests_per_minute": 60,
        "tokens_per_minute": 0,
        "models": ["a", "b"],
    }
    tenant = Keys(KeyFile.read(_file(key, key_id, **row).written())).tenant_of(key)
    assert tenant is not None
    assert (tenant.priority, tenant.weight) == (PriorityClass.TOLERANT, 3)
    assert tenant.limits == Limits(requests_per_minute=60)
    assert tenant.models == {"a", "b"}
    assert tenant.may_use("a")
    assert not tenant.may_use("c")


def test_a_tenants_mark_is_its_own_and_that_of_its_file() -> None:
    key_id, key = api_keys.draw()
    file = _file(key, key_id)
    again = Keys(KeyFile.read(file.written())).tenants["acme"].mark
    assert Keys(file).tenants["acme"].mark == again
    assert Keys(_file(key, key_id)).tenants["acme"].mark != again


ROW = {"id": "0" * 12, "tenant": "acme", "digest": "0" * 64}
WHOLE: dict[str, Any] = {
    "version": 1,
    "salt": "0" * 64,
    "tenants": {"acme": {}},
    "keys": [ROW],
}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"version": 2}, "version"),
        ({"salt": "short"}, "salt"),
        ({"tenants": {}}, "keys"),
        ({"tenants": {"acme": {}, "a b": {}}}, "keys"),
        ({"tenants": {"acme": {"class": "royal"}}}, "tenants.acme.class"),
        ({"tenants": {"acme": {"streams": -1}}}, "tenants.acme.streams"),
        ({"tenants": {"acme": {"weight": 0}}}, "tenants.acme.weight"),
        ({"tenants": {"acme": {"models": []}}}, "tenants.acme.models"),
        ({"tenants": {"acme": {"models": [""]}}}, "tenants.acme.models"),
        ({"tenants": {"acme": {"unheard": 1}}}, "tenants.acme.unheard"),
        ({"keys": [ROW, ROW]}, "keys"),
        ({"keys": [ROW | {"digest": "secret"}]}, "keys.0.digest"),
        ({"keys": [ROW | {"id": "secret"}]}, "keys.0.id"),
    ],
)
def test_a_file_that_is_wrong_names_the_place_and_repeats_nothing(
    change: dict[str, Any], place: str
) -> None:
    KeyFile.read(json.dumps(WHOLE).encode())
    with pytest.raises(InvalidArgument) as failed:
        KeyFile.read(json.dumps(WHOLE | change).encode())
    assert failed.value.field == place
    assert "secret" not in failed.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff" * 9, b"[" * 100_000])
def test_what_is_no_file_of_keys_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        KeyFile.read(data)


def test_a_process_shows_the_key_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(api_keys.VARIABLE, raising=False)
    assert (api_keys.headers(), api_keys.metadata()) == ({}, ())
    monkeypatch.setenv(api_keys.VARIABLE, "shunt-1\n")
    assert api_keys.headers() == {"Authorization": "Bearer shunt-1"}
    assert api_keys.metadata() == (("authorization", "Bearer shunt-1"),)
