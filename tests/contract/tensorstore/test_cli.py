"""`shunt model`, as scripts use it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from services.tensorstore.cli import app
from tests.checkpoints import bits, make_config, make_tensors, rot, write_checkpoint
from tests.mutants import flip

run = CliRunner()


def model(*arguments: object, code: int = 0) -> Result:
    done = run.invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config = make_config()
    return write_checkpoint(tmp_path / "source", config, make_tensors(config))


@pytest.mark.parametrize("remote", [False, True])
def test_a_model_is_imported_listed_exported_and_verified(
    source: Path, tmp_path: Path, remote: bool, request: pytest.FixtureRequest
) -> None:
    at: list[object] = ["--store", tmp_path / "store"]
    if remote:
        endpoint = request.getfixturevalue("s3_endpoint")
        at = ["--store", request.getfixturevalue("s3_uri"), "--endpoint-url", endpoint]
    model("import", source, "--name", "tiny", *at)
    (found,) = json.loads(model("list", "--json", *at).stdout)
    assert (found["name"], found["layers"]) == ("tiny", 3)
    assert re.fullmatch("[0-9a-f]{64}", found["digest"])
    assert (
        json.loads(model("show", "tiny", "--json", *at).stdout)["config"]["num_hidden_layers"] == 3
    )
    out = tmp_path / "out.safetensors"
    cache = ["--cache-dir", tmp_path / "cache"]
    model("prefetch", "tiny", "--layers", "0:2", *at, *cache)
    model("export", "tiny", out, "--layers", "1:3", "--tp-rank", "1/2", *at, *cache)
    exported = load_file(out)
    original = make_tensors(make_config())["model.layers.2.self_attn.o_proj.weight"]
    wanted = original.chunk(2, 1)[1]
    assert bits(exported["model.layers.2.self_attn.o_proj.weight"]).equal(bits(wanted))
    assert {"model.norm.weight", "lm_head.weight"} <= exported.keys()
    model("verify", "tiny", *at, *cache)
    if remote:
        path = max((tmp_path / "cache").glob("objects/??/*"), key=lambda path: path.stat().st_size)
        rot(path)
        said = model("verify", "tiny", *at, *cache, code=1).output.replace("\n", "")
        assert f"{path.name} in {path}" in said
        model("export", "tiny", out, *at, *cache)  # fetches it anew
        model("verify", "tiny", *at, *cache)
    target = tmp_path / "copy"
    model("push", "tiny", target, *at)
    model("verify", "tiny", "--store", target)
    model("delete", "tiny", *at)
    model("gc", "--grace-s", 0, *at)
    model("pull", "tiny", target, *at)
    model("verify", "tiny", *at, *cache)


def test_damage_is_named_and_exits_1(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    model("import", source, "--name", "tiny", "--store", store)
    path = max(store.rglob("objects/??/*"), key=lambda path: path.stat().st_size)
    flip(path, 803)
    assert path.name in model("verify", "tiny", "--store", store, code=1).output


def test_a_damaged_model_is_listed_as_such_beside_the_sound_ones(
    source: Path, tmp_path: Path
) -> None:
    store = ["--store", tmp_path / "store"]
    model("import", source, "--name", "sound", *store)
    (source / "config.json").write_text(json.dumps(make_config(note=1)))
    digest = model("import", source, "--name", "damaged", *store).output.split("damaged ")[1][:64]
    flip(tmp_path / "store" / "objects" / digest[:2] / digest, 40)
    damaged, sound = json.loads(model("list", "--json", *store).stdout)
    assert damaged == {"name": "damaged", "problem": f"object {digest} is damaged"}
    assert (sound["name"], sound["layers"]) == ("sound", 3)
    assert "is damaged" in " ".join(model("list", *store).output.split())


def test_the_stores_of_a_copy_may_have_endpoints_of_their_own(
    source: Path, proxy: Any, s3_endpoint: str, s3_uri: str
) -> None:
    endpoint, faults = proxy
    store = ["--store", s3_uri, "--endpoint-url", s3_endpoint]
    model("import", source, "--name", "tiny", *store)
    model("push", "tiny", s3_uri + "/copy", *store, "--to-endpoint-url", endpoint)
    assert {"/copy/" in path for _, path, _ in faults.requests} == {True}
    faults.requests.clear()
    there = ["--store", s3_uri + "/back", "--endpoint-url", s3_endpoint]
    model("pull", "tiny", s3_uri + "/copy", *there, "--from-endpoint-url", endpoint)
    assert {method for method, _, _ in faults.requests} == {"GET", "HEAD"}
    model("verify", "tiny", *there)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nobody"], "not in the store"),
        (["export", "tiny", "x", "--layers", "1"], "A:B"),
        (["export", "tiny", "x", "--layers", "2:9"], "2:9"),
        (["export", "tiny", "x", "--tp-rank", "0/3"], "8 attention heads"),
        (["export", "tiny", "x", "--tp-rank", "5"], "R/N"),
        (["import", "nowhere", "--name", "y"], "neither"),
        (["show", "../../etc/passwd"], "model name"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    source: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    store: list[Any] = ["--store", tmp_path / "store"]
    model("import", source, "--name", "tiny", *store)
    done = model(*arguments, *store, code=1)
    assert said in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("gc",), ("delete", "tiny")])
def test_a_store_that_is_not_there_is_no_empty_one(tmp_path: Path, command: tuple[str]) -> None:
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        done = model(*command, "--store", tmp_path / name, code=1)
        assert done.stdout == ""
        assert f"error: there is no store at {tmp_path / name}; " in done.stderr
    (tmp_path / "store").mkdir()
    assert model("list", "--json", "--store", tmp_path / "store").stdout == "[]\n"
