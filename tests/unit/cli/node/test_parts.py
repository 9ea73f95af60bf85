from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.node import parts
from services.cli.node.settings import NodeSettings
from services.common import mesh_token
from services.common.errors import InvalidArgument
from services.common.machine import Device, MachineFacts
from services.common.settings import TLS_FILES
from services.engine import machine as engine_machine
from services.engine.settings import EngineSettings
from services.tensorstore.settings import TensorStoreSettings
from tests.certificates import Authority

FACTS = MachineFacts(instance_id="i-1", instance_type="g6.xlarge", zone="use1-az4", spot=True)
GPU = Device("NVIDIA L4", 24 << 30)


def chosen(**more: object) -> NodeSettings:
    given = {"controller": "127.0.0.1:7002,127.0.0.1:8002", "store": "/models"}
    return NodeSettings.model_validate(given | more)


def engine_of(
    monkeypatch: pytest.MonkeyPatch, settings: NodeSettings, *gpus: Device, **environment: str
) -> EngineSettings:
    """As the engine would read them."""
    _, engine = parts.parts_of(settings, "n1", FACTS, gpus, environment)
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    return EngineSettings()


def test_the_engine_is_told_what_was_found_and_tells_it_as_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(monkeypatch, chosen(drain_s=90.0))
    told = engine_machine.told(engine, MachineFacts(cores=2.0))
    assert told == MachineFacts(
        instance_id="i-1", instance_type="g6.xlarge", zone="use1-az4", spot=True, cores=2.0
    )
    assert told.declared == ()
    assert engine.controllers == ("127.0.0.1:7002", "127.0.0.1:8002")
    assert (engine.node_id, engine.notice_s, engine.hears_notices) == ("n1", 90.0, True)
    assert (engine.host, engine.reachable_host, engine.device) == ("127.0.0.1", "127.0.0.1", "cpu")


def test_it_computes_on_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(monkeypatch, chosen(), GPU, GPU)
    assert (engine.device, engine.memory_bytes) == ("cuda", int(0.9 * GPU.memory_bytes))


@pytest.mark.parametrize(
    ("ranks", "backend", "shared"),
    [("0", "vllm", 2), ("9", "vllm", 2), ("0", "native", 1), ("\N{SUPERSCRIPT TWO}", "vllm", 1)],
)
def test_ranks_of_a_stage_have_the_memory_of_a_gpu_each(
    ranks: str, backend: str, shared: int
) -> None:
    said = {"SHUNT_ENGINE_RANKS": ranks, "SHUNT_ENGINE_BACKEND": backend}
    _, engine = parts.parts_of(chosen(), "n1", FACTS, (GPU, GPU), said)
    told = engine.environment["SHUNT_ENGINE_MEMORY_BYTES"]
    assert told == str(int(0.9 * shared * GPU.memory_bytes))


def test_what_somebody_sets_of_a_part_counts_but_not_whose_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"SHUNT_ENGINE_MEMORY_BYTES": str(1 << 30), "SHUNT_ENGINE_NODE_ID": "another"}
    engine = engine_of(monkeypatch, chosen(memory_share=0.5), GPU, **said)
    assert (engine.memory_bytes, engine.node_id) == (1 << 30, "n1")


def test_the_store_is_a_cache_of_what_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = chosen(store="s3://bucket/models", cache_directory=tmp_path, cache_bytes=1 << 30)
    own = {"SHUNT_TENSORSTORE_TLS__DIRECTORY": "elsewhere"}
    token = {mesh_token.VARIABLE: "x" * 20, "OTHER": "kept", **own}
    part, engine = parts.parts_of(settings, "n1", FACTS, (), token)
    store = parts.without_token(part)
    assert mesh_token.VARIABLE not in store.environment
    assert store.environment["OTHER"] == "kept"
    assert not own.keys() & store.environment.keys(), "it shows the node's certificate"
    assert engine.environment[mesh_token.VARIABLE] == "x" * 20
    assert engine.environment["SHUNT_ENGINE_STORE"] == f"grpc://{store.address}?role=engine"
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    read = TensorStoreSettings()
    assert (read.store, read.cache_directory, read.cache_bytes, read.host) == (
        "s3://bucket/models",
        tmp_path,
        1 << 30,
        "127.0.0.1",
    )


def test_a_node_is_called_what_is_said_or_known() -> None:
    token = mesh_token.of_node("m" * 20, "gpu-7")
    nothing = MachineFacts()
    assert parts.name_of(chosen(id="own"), token, FACTS, "host") == "own"
    assert parts.name_of(chosen(), token, FACTS, "host") == "gpu-7"
    assert parts.name_of(chosen(), "m" * 20, FACTS, "host") == "i-1"
    assert parts.name_of(chosen(), "", nothing, "host") == "host"


def test_whose_it_is_comes_of_files(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 20)
    secrets = parts.secrets_of(chosen(join_token=token))
    assert secrets == {mesh_token.FILE_VARIABLE: str(token), mesh_token.VARIABLE: ""}
    with pytest.raises(InvalidArgument) as refused:
        parts.secrets_of(chosen(certificates=tmp_path))
    assert refused.value.field == "certificates"
    mine = certificates(tmp_path, "engine/n1")
    found = parts.secrets_of(chosen(certificates=mine))
    assert found["SHUNT_TLS_KEY"] == str(mine / "key.pem")


def certificates(path: Path, identity: str) -> Path:
    """A directory of them."""
    for name, issued in Authority(path).issue(identity).items():
        issued.replace(path / TLS_FILES[name])
    return path


def test_a_certificate_says_which_node_it_is(tmp_path: Path) -> None:
    mine = certificates(tmp_path, "engine/n1")
    assert parts.name_of(chosen(certificates=mine), "", FACTS, "host") == "n1"
    parts.secrets_of(chosen(certificates=mine, id="n1"))
    with pytest.raises(InvalidArgument, match="n1's alone") as refused:
        parts.secrets_of(chosen(certificates=mine, id="n2"))
    assert refused.value.field == "id"
    any_node = certificates(tmp_path, "engine")
    assert parts.name_of(chosen(certificates=any_node), "", FACTS, "host") == "i-1"


@pytest.mark.parametrize("identity", ["router", "operator", ""])
def test_another_roles_certificate_is_no_nodes(identity: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="role") as refused:
        parts.secrets_of(chosen(certificates=certificates(tmp_path, identity)))
    assert refused.value.field == "certificates"
