from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli.keys import app
from services.common.api_keys import KeyFile, Keys

RUN = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "keys.json"


def _shunt_keys(file: Path, *arguments: str) -> Result:
    return RUN.invoke(app, arguments, env={"SHUNT_ROUTER_KEYS": str(file)})


def _keys(file: Path) -> Keys:
    return Keys(KeyFile.read(file.read_bytes()))


def _listed(file: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(_shunt_keys(file, "list", "--json").stdout)
    return listed


def test_create_prints_a_key_last_on_its_one_line(file: Path) -> None:
    said = _shunt_keys(file, "create", "--tenant", "acme").stdout
    assert said.count("\n") == 1
    tenant = _keys(file).tenant_of(said.split()[-1])
    assert tenant is not None
    assert tenant.name == "acme"


def test_with_json_create_prints_id_key_and_tenant(file: Path) -> None:
    said = json.loads(_shunt_keys(file, "create", "--tenant", "acme", "--json").stdout)
    assert said.keys() == {"id", "key", "tenant"}
    assert _listed(file)[0]["id"] == said["id"]
    assert said["key"] not in file.read_text()


def test_the_file_is_its_owners_alone_and_is_never_half_there(file: Path) -> None:
    _shunt_keys(file, "create", "--tenant", "acme")
    file.chmod(0o644)
    before = file.stat().st_ino
    _shunt_keys(file, "create", "--tenant", "acme")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_ino != before, "replaced by a rename"
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_what_is_said_counts_for_the_tenant_and_what_is_not_said_stays(file: Path) -> None:
    create = ("create", "--tenant", "acme")
    _shunt_keys(file, *create, "--class", "tolerant", "--rpm", "60", "--models", "a,b")
    _shunt_keys(file, *create, "--tpm", "1000", "--streams", "4", "--rpm", "0", "--weight", "2")
    _shunt_keys(file, "create", "--tenant", "other")
    rows = _listed(file)
    shown = {name: rows[0][name] for name in ("class", "weight", "rpm", "tpm", "streams", "models")}
    assert shown == {
        "class": "tolerant",
        "weight": 2,
        "rpm": None,
        "tpm": 1000,
        "streams": 4,
        "models": ["a", "b"],
    }
    assert [row["tenant"] for row in rows] == ["acme", "acme", "other"]
    assert {rows[2][name] for name in ("rpm", "tpm", "streams", "models")} == {None}
    _shunt_keys(file, *create, "--models", "")
    assert _listed(file)[0]["models"] is None


def test_a_revoked_key_is_nobodys_and_the_others_stay(file: Path) -> None:
    made = [
        json.loads(_shunt_keys(file, "create", "--tenant", "acme", "--json").stdout)
        for _ in range(2)
    ]
    assert _shunt_keys(file, "revoke", made[0]["id"]).exit_code == 0
    assert [_keys(file).tenant_of(one["key"]) is None for one in made] == [True, False]
    again = _shunt_keys(file, "revoke", made[0]["id"])
    assert again.exit_code == 1
    assert made[0]["id"] in again.stderr


def test_list_shows_no_key(file: Path) -> None:
    key = _shunt_keys(file, "create", "--tenant", "acme").stdout.split()[-1]
    for arguments in (("list",), ("list", "--json")):
        said = _shunt_keys(file, *arguments).stdout
        assert "acme" in said
        assert key[-43:] not in said


def test_a_list_shows_whole_ids_however_narrow_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _shunt_keys(file, "create", "--tenant", "acme").stdout
    monkeypatch.setenv("COLUMNS", "60")
    (name,) = re.findall(r"key ([0-9a-f]{12}) of tenant acme", made)
    assert name in _shunt_keys(file, "list").stdout


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--tenant", "a b"), "--tenant"),
        (("--tenant", ""), "--tenant"),
        (("--tenant", "x" * 65), "--tenant"),
        (("--tenant", "acme", "--class", "royal"), "--class"),
        (("--tenant", "acme", "--rpm", "-1"), "--rpm"),
        (("--tenant", "acme", "--tpm", str(10**20)), "--tpm"),
        (("--tenant", "acme", "--streams", "-5"), "--streams"),
        (("--tenant", "acme", "--weight", "0"), "--weight"),
        (("--tenant", "acme", "--models", "x" * 257), "--models"),
    ],
)
def test_what_cannot_be_names_its_option_and_changes_nothing(
    file: Path, arguments: tuple[str, ...], option: str
) -> None:
    refused = _shunt_keys(file, "create", *arguments)
    assert refused.exit_code == 2
    assert f"bad setting {option}: " in refused.stderr
    assert not file.exists()


def test_a_file_that_is_none_of_keys_is_left_alone(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("mine")
    for arguments in (("create", "--tenant", "acme"), ("list",), ("revoke", "0" * 12)):
        refused = _shunt_keys(file, *arguments)
        assert (refused.exit_code, "--file" in refused.stderr) == (2, True)
    assert file.read_text() == "mine"


def test_the_first_key_is_made_once_and_shown_nowhere(file: Path, tmp_path: Path) -> None:
    first = ("first", "--tenant", "acme", "--key-file", str(tmp_path / "first-key"))
    said = _shunt_keys(file, *first).stdout
    key = (tmp_path / "first-key").read_text().strip()
    assert _keys(file).tenant_of(key) is not None
    assert key not in said
    assert (tmp_path / "first-key").stat().st_mode & 0o777 == 0o600
    _shunt_keys(file, *first)
    assert (tmp_path / "first-key").read_text().strip() == key
    assert len(_listed(file)) == 1


def test_keys_that_are_made_at_once_are_all_there(file: Path) -> None:
    from services.cli.key_files import add_key

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add_key(file, f"t{number % 3}", {}), range(24)))
    assert len(_listed(file)) == 24
