from __future__ import annotations

from pathlib import Path

import pytest

from services.common.machine import NOTHING_KNOWN, Device, MachineFacts
from services.common.nodes import NodeShape
from services.engine import machine
from services.engine.settings import Declared, EngineSettings
from services.placement.estimate.catalogue import load_catalogue

GPUS = MachineFacts(
    memory_bytes=64 << 30, devices=(Device("NVIDIA L4", 22 << 30), Device("Tesla T4", 15 << 30))
)


def interface(root: Path, name: str, speed: str, state: str = "up", *, real: bool = True) -> None:
    path = root / "sys/class/net" / name
    path.mkdir(parents=True)
    (path / "speed").write_text(speed + "\n")
    (path / "operstate").write_text(state + "\n")
    if real:
        (path / "device").mkdir()


def test_the_network_is_as_fast_as_its_fastest_real_interface(tmp_path: Path) -> None:
    assert machine.network(tmp_path) == NOTHING_KNOWN
    interface(tmp_path, "lo", "")
    interface(tmp_path, "eth0", "-1")
    interface(tmp_path, "docker0", "10000", real=False)
    interface(tmp_path, "eth1", "100000", state="down")
    assert machine.network(tmp_path) == NOTHING_KNOWN, "unknown, and not guessed"
    interface(tmp_path, "eth2", "2500")
    interface(tmp_path, "eth3", "1000")
    assert machine.network(tmp_path) == MachineFacts(network_gbps=2.5)


def test_where_there_is_no_driver_there_is_no_device(tmp_path: Path) -> None:
    assert machine.cuda(tmp_path) == MachineFacts(devices=())


def test_a_container_of_docker_knows_which_one_it_is(tmp_path: Path) -> None:
    assert machine.container(tmp_path) == NOTHING_KNOWN
    mounts = tmp_path / "proc/self/mountinfo"
    mounts.parent.mkdir(parents=True)
    mounts.write_text("23 28 0:21 / /proc rw,nosuid - proc proc rw\n")
    assert machine.container(tmp_path) == NOTHING_KNOWN
    name, place = "7b" * 32, "/var/lib/docker/containers"
    mounts.write_text(
        f"129 111 254:0 {place}/{name}/hostname /etc/hostname rw - ext4 /dev/vda rw\n"
    )
    assert machine.container(tmp_path).instance_id == name


def test_this_machine_has_cores_and_memory() -> None:
    facts = machine.processor()
    assert facts.cores is not None
    assert facts.memory_bytes is not None
    assert facts.cores > 0
    assert facts.memory_bytes > 1 << 20
    assert facts.declared == ()


def test_what_one_finder_cannot_find_the_others_do(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> MachineFacts:
        raise RuntimeError("the driver is too old")

    finders = {
        "cuda": broken,
        "metadata": lambda: MachineFacts(instance_type="g6.xlarge", zone="a", spot=True),
        "network": lambda: MachineFacts(network_gbps=10.0),
    }
    assert machine.find(finders) == MachineFacts(
        instance_type="g6.xlarge", zone="a", spot=True, network_gbps=10.0
    )
    assert [record.__dict__["finder"] for record in caplog.records] == ["cuda"]


def test_only_what_a_provider_says_is_declared() -> None:
    plain = EngineSettings(node_id="n", memory_bytes=5 << 20, relative_speed=3.0)
    assert machine.told(plain, GPUS) == GPUS, "settings of whoever runs it are no facts"
    said = Declared(instance_type="big", pool="a", spot=True)
    facts = machine.told(plain.model_copy(update={"declared": said}), GPUS)
    assert facts.declared == ("instance_type", "memory_bytes", "pool", "relative_speed", "spot")
    assert (facts.memory_bytes, facts.relative_speed) == (5 << 20, 3.0)
    assert (facts.devices, facts.zone) == (GPUS.devices, None)


@pytest.mark.parametrize(
    ("settings", "found", "shape"),
    [
        ({}, NOTHING_KNOWN, (8 << 30, "cpu")),
        ({}, MachineFacts(memory_bytes=2 << 30), (2 << 30, "cpu")),
        ({}, GPUS, (8 << 30, "cpu")),
        ({"device": "cuda"}, GPUS, (8 << 30, "l4")),
        ({"device": "cuda:1"}, GPUS, (8 << 30, "t4")),
        ({"device": "cuda:1", "memory_bytes": 99 << 30}, GPUS, (15 << 30, "t4")),
        ({"device": "cuda:2"}, GPUS, (8 << 30, "cpu")),
        ({"device": "cuda", "memory_bytes": 99 << 30}, GPUS, (22 << 30, "l4")),
        ({"device": "cuda", "device_type": "a100"}, GPUS, (8 << 30, "a100")),
        ({"device": "cuda"}, NOTHING_KNOWN, (8 << 30, "cpu")),
        ({"declared": Declared()}, MachineFacts(memory_bytes=2 << 30), (8 << 30, "cpu")),
    ],
)
def test_a_node_is_no_more_than_was_found_where_it_computes(
    settings: dict[str, object], found: MachineFacts, shape: tuple[int, str]
) -> None:
    chosen = EngineSettings.model_validate(
        {"node_id": "n", "memory_bytes": 8 << 30, "relative_speed": 2.0, **settings}
    )
    memory_bytes, device_type = shape
    facts = machine.told(chosen, found)
    assert machine.shape(chosen, facts) == NodeShape(memory_bytes, 2.0, device_type)


@pytest.mark.parametrize(
    ("settings", "found", "ranks"),
    [
        ({}, MachineFacts(cores=16.0), 1),
        ({"ranks": 3}, NOTHING_KNOWN, 3),
        ({"ranks": 9}, NOTHING_KNOWN, 4),
        ({"ranks": 0}, MachineFacts(cores=2.7), 2),
        ({"ranks": 0}, MachineFacts(cores=0.5), 1),
        ({"ranks": 0}, NOTHING_KNOWN, 1),
        ({"ranks": 0, "device": "cuda"}, GPUS, 1),
        ({"ranks": 0, "device": "cuda", "backend": "vllm"}, GPUS, 2),
        ({"ranks": 4, "device": "cuda", "backend": "vllm"}, GPUS, 2),
        ({"ranks": 2, "device": "cuda:1", "backend": "vllm"}, GPUS, 1),
        ({"ranks": 4, "device": "cuda", "backend": "vllm"}, NOTHING_KNOWN, 4),
        ({"ranks": 9, "backend": "vllm"}, NOTHING_KNOWN, 9),
    ],
)
def test_a_node_has_as_many_ranks_as_are_set_or_as_there_is_something_for(
    settings: dict[str, object], found: MachineFacts, ranks: int
) -> None:
    chosen = EngineSettings(node_id="n").model_copy(update=settings)
    assert machine.shape(chosen, found).device_count == ranks


def test_a_node_of_several_ranks_has_the_memory_of_all_their_devices() -> None:
    said = {"device": "cuda", "backend": "vllm", "ranks": 2, "memory_bytes": 99 << 30}
    shape = machine.shape(EngineSettings(node_id="n").model_copy(update=said), GPUS)
    assert (shape.device_count, shape.memory_bytes) == (2, 2 * (15 << 30))


@pytest.mark.parametrize(
    ("name", "memory_gb", "device_type"),
    [
        ("Tesla T4", 15, "t4"),
        ("Tesla V100-SXM2-16GB", 17, "v100"),
        ("Tesla V100-SXM2-32GB", 34, "v100-32"),
        ("NVIDIA A10G", 23, "a10g"),
        ("NVIDIA L4", 23, "l4"),
        ("NVIDIA L40S", 47, "l40s"),
        ("NVIDIA A40", 47, "a40"),
        ("NVIDIA A100-SXM4-40GB", 42, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 85, "a100-80"),
        ("NVIDIA H100 80GB HBM3", 85, "h100"),
        ("NVIDIA H200", 150, "h200"),
        ("NVIDIA B200", 190, "b200"),
        ("NVIDIA GeForce RTX 3090", 25, "cpu"),
    ],
)
def test_a_device_is_the_type_that_placement_knows(
    name: str, memory_gb: int, device_type: str
) -> None:
    found = MachineFacts(devices=(Device(name, round(memory_gb * 1e9)),))
    settings = EngineSettings(node_id="n", device="cuda")
    assert machine.shape(settings, found).device_type == device_type
    assert device_type in load_catalogue().gpus
