"""`shunt model import hf:ORG/NAME@REVISION`, against a hub of our own that fails in many ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import close_session
from typer.testing import CliRunner

from services.common.errors import (
    Aborted,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ShuntError,
    Unavailable,
)
from services.common.generation import LayerRange
from services.tensorstore.cli import app
from services.tensorstore.client import open_store
from services.tensorstore.sources.hub import calls, fetch, staging
from services.tensorstore.sources.hub.listing import HubModel, list_files, parse_hub_name
from services.tensorstore.sources.hub.staging import staged
from tests.checkpoints import bits, make_config, make_tensors, write_checkpoint
from tests.fake_hub import COMMIT, FakeHub, serving

REPOSITORY = "someone/tiny-model"
MODEL = HubModel(REPOSITORY)
ONE_MORE_S = 0.5
"""Time for one file too many to be asked for; it does not come."""
PIECE_BYTES = 250
"""The library writes whole pieces: what is cut in the middle of one is fetched again."""
CODE = {
    "modeling_tiny.py": b"raise SystemExit(1)",
    "pytorch_model.bin": b"\x80\x04pickle",
    "consolidated.safetensors": b"not even one",
    "onnx/model.onnx": b"x",
    "../outside.safetensors": b"x",
}


def repository(folder: Path, **changes: Any) -> dict[str, bytes]:
    """The files of a checkpoint in three shards, and others that are no business of an import."""
    config = make_config(**changes)
    write_checkpoint(folder, config, make_tensors(config), shards=3)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} | CODE


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(time, "sleep", lambda s: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", PIECE_BYTES)
    with serving(FakeHub(REPOSITORY, repository(tmp_path / "files"))) as found:
        yield found
    close_session()


def bring(hub: FakeHub, root: Path, model: HubModel = MODEL, token: str | None = None) -> list[str]:
    """Names of the tensors of the model that came."""
    api = HfApi(endpoint=hub.url, token=token)
    with staged(api, model, root, None, lambda done, total: None) as checkpoint:
        return sorted(checkpoint.tensors)


def refused(hub: FakeHub, root: Path, **options: Any) -> ShuntError:
    with pytest.raises(ShuntError) as caught:
        bring(hub, root, **options)
    return caught.value


def shunt(hub: FakeHub, *arguments: str) -> str:
    """What the command prints; the library reads its environment when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token or ""}
    command = [sys.executable, "-m", "services.cli", "model", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_imported_by_name_and_its_commit_recorded(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    store = ["--store", str(tmp_path / "store")]
    shunt(hub, "import", f"hf:{REPOSITORY}@v1", *store)
    shown = json.loads(CliRunner().invoke(app, ["show", "tiny-model", "--json", *store]).stdout)
    assert shown["origin"] == {"repository": REPOSITORY, "commit": COMMIT}
    assert shown["backends"] == ["native", "vllm"]
    model = open_store(str(tmp_path / "store")).model("tiny-model")
    with model.stage(LayerRange(0, 3)) as stage:
        for name, tensor in make_tensors(make_config()).items():
            assert bits(stage.tensors[name]).equal(bits(tensor))
    assert not list((tmp_path / "store" / "hub").rglob("*.safetensors"))
    again = shunt(hub, "import", f"hf:{REPOSITORY}@{COMMIT}", *store)
    assert f"{shown['digest']} stored 0 bytes" in again


def test_no_code_and_no_pickle_is_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    assert bring(hub, tmp_path / "root") == sorted(make_tensors(make_config()))
    assert hub.asked_for() == set(hub.files) - set(CODE)


def test_a_download_that_is_cut_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    name = "model-00001-of-00003.safetensors"
    hub.cut_after[name] = [1000, 500]
    bring(hub, tmp_path / "root")
    assert hub.ranges()[name] == ["bytes=1000-", "bytes=1500-"]
    assert hub.sent_bytes[name] == len(hub.files[name])


def test_an_import_that_was_killed_goes_on_with_what_came(hub: FakeHub, tmp_path: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    hub.cut_after[name] = [1500] + [0] * 40
    found = refused(hub, tmp_path / "root")
    assert isinstance(found, Unavailable)
    assert "goes on where it stopped" in found.message
    hub.cut_after.clear()
    bring(hub, tmp_path / "root")
    assert hub.sent_bytes[name] == len(hub.files[name])
    others = [other for other in hub.files if other not in CODE and other != name]
    assert all(hub.sent_bytes[other] == len(hub.files[other]) for other in others)
    assert hub.ranges()[name][-1] == "bytes=1500-"


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_busy_hub_is_asked_again(hub: FakeHub, tmp_path: Path, status: int) -> None:
    for name in ("model-00001-of-00003.safetensors", "config.json"):
        hub.statuses[name] = [status] * 2
    bring(hub, tmp_path / "root")


def test_a_hub_that_stays_busy_is_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.statuses["config.json"] = [503] * 100
    found = refused(hub, tmp_path / "root")
    assert isinstance(found, Unavailable)
    assert "answers 503" in found.message
    assert "config.json" in found.message


@pytest.mark.parametrize("name", ["model-00003-of-00003.safetensors", "config.json"])
def test_a_file_with_another_digest_is_fetched_again_then_given_up(
    hub: FakeHub, tmp_path: Path, name: str
) -> None:
    hub.lies[name] = 1
    bring(hub, tmp_path / "root")
    hub.lies[name] = 100
    found = refused(hub, tmp_path / "other")
    assert isinstance(found, DataLoss)
    assert found.field == name
    assert "digest" in found.message
    assert 100 - hub.lies[name] == calls.ATTEMPTS


def test_several_files_come_at_once_and_no_more(tmp_path: Path) -> None:
    config = make_config()
    write_checkpoint(tmp_path / "files", config, make_tensors(config), shards=12)
    files = {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    held, told = threading.Event(), []
    with serving(FakeHub(REPOSITORY, files)) as hub:
        api = HfApi(endpoint=hub.url)
        listing = list_files(api, MODEL)
        hub.held, hub.most_allowed = held, fetch.FILES_AT_ONCE
        shards = [file for file in listing.files if file not in listing.small]

        def release() -> None:
            while hub.open_at_once < fetch.FILES_AT_ONCE:
                threading.Event().wait(0.01)
            hub.one_too_many.wait(ONE_MORE_S)
            held.set()

        waiting = threading.Thread(target=release)
        waiting.start()
        fetch.fetch(api, listing, shards, tmp_path / "to", lambda *done: told.append(done))
        waiting.join()
        assert hub.most_at_once == fetch.FILES_AT_ONCE
    total = sum(file.size_bytes for file in shards)
    assert told[-1] == (total, total)
    close_session()


def test_a_gated_model_says_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    hub.token, hub.gated = "hf_secret", True
    found = refused(hub, tmp_path / "root")
    assert isinstance(found, PermissionDenied)
    assert found.field == "token"
    assert "terms" in found.message
    assert "HF_TOKEN" in found.message
    assert bring(hub, tmp_path / "root", token="hf_secret")
    assert hub.cdn_tokens == {None}


def test_a_private_model_is_one_that_is_not_there(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    found = refused(hub, tmp_path / "root", token="hf_other")
    assert isinstance(found, NotFound)
    assert "HF_TOKEN" in found.message
    assert "hf_other" not in found.message


def test_a_hub_that_denies_everything_is_told(hub: FakeHub, tmp_path: Path) -> None:
    hub.denies = 403
    found = refused(hub, tmp_path / "root")
    assert isinstance(found, PermissionDenied)
    assert "403" in found.message


def test_a_revision_that_is_not_there_is_named(hub: FakeHub, tmp_path: Path) -> None:
    found = refused(hub, tmp_path / "root", model=HubModel(REPOSITORY, "v2"))
    assert isinstance(found, NotFound)
    assert found.field == "revision"
    assert "v2" in found.message


def test_a_repository_without_safetensors_is_told_what_it_has(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x", "model.gguf": b"x"}
    found = refused(hub, tmp_path / "root")
    assert isinstance(found, InvalidArgument)
    assert "no *.safetensors (only .bin, .gguf)" in found.message


def test_what_cannot_be_served_is_refused_before_its_weights_come(
    hub: FakeHub, tmp_path: Path
) -> None:
    config = make_config(hidden_act="gelu")
    hub.files = {**hub.files, "config.json": json.dumps(config).encode()}
    found = refused(hub, tmp_path / "root")
    assert found.field == "hidden_act"
    assert not any("safetensors" in name for name in hub.asked_for() if "index" not in name)


def test_a_shard_that_the_index_names_must_be_there(hub: FakeHub, tmp_path: Path) -> None:
    name = "model-00002-of-00003.safetensors"
    hub.files = {other: data for other, data in hub.files.items() if other != name}
    found = refused(hub, tmp_path / "root")
    assert name in found.message


def test_a_disk_that_is_too_small_is_told_by_how_much(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(len(data) for name, data in hub.files.items() if name.startswith("model-"))
    usage = type("Usage", (), {"free": weights})
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    (tmp_path / "store").mkdir()
    api = HfApi(endpoint=hub.url)
    store, root = tmp_path / "store", tmp_path / "store" / "hub"
    with (
        pytest.raises(ResourceExhausted) as caught,
        staged(api, MODEL, root, store, lambda done, total: None),
    ):
        pass
    assert caught.value.field == "disk"
    assert "too little" in caught.value.message
    assert not any(name.startswith("model-0") for name in hub.asked_for())
    usage.free = 3 * weights
    with staged(api, MODEL, root, store, lambda done, total: None):
        pass


def test_one_import_at_a_time_fetches_a_model(hub: FakeHub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url)
    with staged(api, MODEL, tmp_path, None, lambda done, total: None):
        assert isinstance(refused(hub, tmp_path), Aborted)


def test_files_stay_where_the_import_fails(hub: FakeHub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.url)
    with (
        pytest.raises(DataLoss),
        staged(api, MODEL, tmp_path / "root", None, lambda done, total: None),
    ):
        raise DataLoss("the store is full")
    sent = hub.sent_bytes.copy()
    bring(hub, tmp_path / "root")
    assert hub.sent_bytes == sent


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("hf:", "source"),
        ("hf:name", "source"),
        ("hf:a/b/c", "source"),
        ("hf:../b", "source"),
        ("hf:a/..", "source"),
        ("hf:a/b@", "revision"),
        ("hf:a/b@../c", "revision"),
        ("hf:a/b@x y", "revision"),
        ("hf:a/" + "b" * 200, "source"),
    ],
)
def test_a_name_that_is_none_is_refused(text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_hub_name(text)
    assert caught.value.field == field


def test_a_name_may_have_a_revision() -> None:
    assert parse_hub_name("hf:a/b") == HubModel("a/b", "main")
    assert parse_hub_name("hf:a/b@refs/pr/1") == HubModel("a/b", "refs/pr/1")


def test_an_endpoint_that_is_no_address_is_named_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.url = "hub.example"
    found = refused(hub, tmp_path / "root")
    assert isinstance(found, InvalidArgument)
    assert found.message == "HF_ENDPOINT is no address of a hub: https://HOST"
