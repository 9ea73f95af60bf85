"""What a host of the mesh does from its first moment: user data, scripts and units, the commands of
the machine played."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli.node.settings import NodeSettings
from services.common.settings import ServiceSettings
from services.controller.providers.ec2.cloud_config import read_cloud_config
from services.controller.providers.ec2.orders import (
    ENVIRONMENT_FILE,
    MAX_USER_DATA_BYTES,
    UNIT,
    user_data,
)
from services.controller.settings import ControllerSettings
from services.placement.settings import PlacementSettings
from services.router.settings import RouterSettings
from services.tensorstore.settings import TensorStoreSettings
from tests.fake_metadata import FakeEc2, serving
from tests.unit.deploy.stack import HOST, MESH, REGISTRY, ROOT, Stack, environment, written

SERVICES: dict[str, type[ServiceSettings]] = {
    "controller": ControllerSettings,
    "placement": PlacementSettings,
    "tensorstore": TensorStoreSettings,
    "router": RouterSettings,
}
HOSTS = {
    "Controller": ("controller", "placement", "tensorstore"),
    "Router": ("router", "tensorstore"),
}
UNITS = sorted(path.name for path in (HOST / "units").glob("*.*") if path.is_file())
SCRIPTS = sorted(path.name for path in (HOST / "sbin").iterdir())
FILES = ("authority.pem", "certificate.pem", "key.pem")
INSTANCE = "i-0123456789abcdef0"


class Machine:
    """Commands that are written down and answered from files, in front of the real ones."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commands = directory / "bin"
        self.commands.mkdir()
        self.log = directory / "log"
        self.log.touch()

    def plays(self, name: str, body: str = "") -> None:
        path = self.commands / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n')
        path.chmod(0o755)

    def runs(self, script: Path | str, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit status and what was said."""
        path = HOST / "sbin" / script if isinstance(script, str) else script
        done = subprocess.run(
            ["sh", str(path), *arguments],
            env={"PATH": f"{self.commands}:{os.environ['PATH']}", **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def did(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# User data


@pytest.mark.parametrize("host", HOSTS)
def test_each_service_of_a_host_gets_settings_that_it_takes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    files = written(stack.user_data(f"{host}Template"))
    shared = environment(files["/etc/shuntserve/host.env"])
    assert shared["ROLES"].split() == list(HOSTS[host])
    for name in HOSTS[host]:
        told = environment(files[f"/etc/shuntserve/{name}.env"])
        prefix = f"SHUNT_{name.upper()}_"
        kind = SERVICES[name]
        variables = {key: value for key, value in told.items() if key != "OPTIONS"}
        fields = {key.removeprefix(prefix).split("__")[0].lower() for key in variables}
        assert all(key.startswith(prefix) for key in variables), variables
        assert fields <= kind.model_fields.keys()
        if name == "controller":
            variables |= controllers_files(files, tmp_path)
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        found = kind()
        # beyond its host only what others call: the role's certificate guards it
        assert (found.host == "0.0.0.0") == (name in ("controller", "router"))


def controllers_files(files: dict[str, str], directory: Path) -> dict[str, str]:
    """Settings of what is on the controller's disk, here."""
    config = directory / "node.yaml"
    config.write_text(files["/etc/shuntserve/market/node.yaml"])
    return {
        "SHUNT_CONTROLLER_EC2__CLOUD_CONFIG": str(config),
        "SHUNT_CONTROLLER_EC2__TYPES_FILE": str(ROOT / "deploy/ec2/types.yaml"),
    }


def test_the_controller_buys_what_the_stack_made(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = written(stack.user_data("ControllerTemplate"))
    told = environment(files["/etc/shuntserve/controller.env"])
    told |= controllers_files(files, tmp_path)
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    found = ControllerSettings()
    assert (found.provider, found.ec2.lacking) == ("ec2", "")
    assert found.ec2.mesh == MESH
    assert found.ec2.template.specification()["LaunchTemplateId"] == stack.ids["NodeTemplate"]
    assert found.ec2.subnet_ids == tuple(stack.outputs["Subnets"].split(","))
    assert found.ec2.queue_url == stack.outputs["QueueUrl"]
    assert found.store == f"s3://{stack.outputs['Bucket']}/models"
    assert found.advertise_address == stack.outputs["ControllerAddress"]


def test_a_nodes_user_data_bring_what_a_public_image_lacks(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(stack.node_config())
    text = user_data({"SHUNT_NODE_ID": "node-7"}, read_cloud_config(path))
    assert len(text.encode()) < MAX_USER_DATA_BYTES // 2
    document = yaml.safe_load(text)
    assert ENVIRONMENT_FILE in written(text)
    *begin, last = document["runcmd"]
    assert last == ["systemctl", "enable", "--now", UNIT]
    assert begin[0] == ["shunt-boot", f"{REGISTRY}/node:1.0", "us-east-1"]


def test_cloud_init_takes_the_user_data(stack: Stack, tmp_path: Path) -> None:
    texts = [stack.user_data(f"{name}Template") for name in HOSTS]
    for index, text in enumerate([*texts, stack.node_config()]):
        document = yaml.safe_load(text)
        paths = [file["path"] for file in document["write_files"]]
        assert len(set(paths)) == len(paths)
        path = tmp_path / str(index)
        path.write_text(text)
        if tool := shutil.which("cloud-init"):
            subprocess.run([tool, "schema", "--config-file", str(path)], check=True)


def test_a_host_fetches_its_image_until_it_has_it_and_its_units_from_there(
    stack: Stack, machine: Machine
) -> None:
    boot = machine.directory / "boot"
    text = written(stack.node_config())["/usr/local/sbin/shunt-boot"]
    boot.write_text(
        text.replace("/etc/shuntserve", str(machine.directory)).replace("sleep 5", "sleep 0")
    )
    machine.plays("systemctl")
    machine.plays("shunt-who", "echo INSTANCE=i-1")
    machine.plays("aws", "echo password")
    tried = machine.directory / "tried"
    machine.plays(
        "docker",
        f"""case $1 in
        login) cat >/dev/null ;;
        pull) test -e {tried} || {{ touch {tried}; exit 1; }} ;;
        create) echo c1 ;;
        esac""",
    )
    status, said = machine.runs(boot, f"{REGISTRY}/node:1.0", "us-east-1")
    assert status == 0, said
    did = machine.did()
    assert did.count(f"docker pull --quiet {REGISTRY}/node:1.0") == 2
    assert f"docker login --username AWS --password-stdin {REGISTRY.partition('/')[0]}" in did
    assert [line for line in did if line.startswith("docker cp")] == [
        "docker cp c1:/opt/host/sbin/. /usr/local/sbin",
        "docker cp c1:/opt/host/units/. /etc/systemd/system",
    ]
    assert (machine.directory / "who.env").read_text() == "INSTANCE=i-1\n"
    assert did[-1] == "systemctl daemon-reload"
    machine.log.write_text("")
    assert machine.runs(boot, "ghcr.io/somebody/node:1.0", "us-east-1")[0] == 0
    assert not [line for line in machine.did() if "login" in line]


# Units


def test_units_start_scripts_that_there_are() -> None:
    for path in (HOST / "units").rglob("*.*"):
        if path.is_file():
            called = re.findall(r"/usr/local/sbin/(\S+)", path.read_text())
            assert set(called) <= set(SCRIPTS), path
    for line in starts():
        for name in line.split(", "):
            kind, _, role = name.partition("@")
            assert name in UNITS or (kind == "shunt" and role in SERVICES), name


def starts() -> list[str]:
    """Units that hosts enable."""
    text = (ROOT / "deploy/ec2/template.yaml").read_text()
    return re.findall(r"\[systemctl, enable, --now, --no-block, ([^\]]+)\]", text)


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(tmp_path: Path, name: str) -> None:
    lines = (HOST / "units" / name).read_text()
    assert {"[Unit]"} <= set(lines.splitlines())
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return
    for path in (HOST / "units").rglob("*.*"):
        if path.is_file():
            text = path.read_text().replace("/usr/local/sbin/", f"{HOST}/sbin/")
            place = tmp_path / path.relative_to(HOST / "units")
            place.parent.mkdir(exist_ok=True)
            place.write_text(text.replace("Requires=docker.service\n", ""))
    for role in ("router", "controller"):  # the latter with what is its own
        unit = tmp_path / name.replace("@.", f"@{role}.")
        done = subprocess.run(
            [tool, "verify", str(unit)], capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if name.partition(".")[0] in line]
        assert (done.returncode, said) == (0, [])


def test_the_nodes_unit_is_that_of_the_docs_but_for_the_container() -> None:
    ours = settings_of(HOST / "units/shunt-node.service")
    docs = settings_of(ROOT / "deploy/node/shunt-node.service")
    for name in ("Restart", "RestartPreventExitStatus", "RestartSec", "KillMode", "TimeoutStopSec"):
        assert ours[name] == docs[name], name
    told = dict(value.split("=", 1) for value in ours["Environment"])
    assert told.pop("SHUNT_ENGINE_METRICS_PORT") == "9100", "its engine's, which it hands on"
    names = {f"SHUNT_NODE_{field.upper()}" for field in NodeSettings.model_fields}
    assert told.keys() <= names
    assert float(told["SHUNT_NODE_DRAIN_S"]) < float(ours["TimeoutStopSec"][0])
    assert "/etc/shuntserve/node.env" in ours["EnvironmentFile"]
    for dockerfile in ("Dockerfile", "gpu.Dockerfile"):
        text = (ROOT / "deploy/images" / dockerfile).read_text()
        stage = text[re.search(r"^FROM \S+ AS node$", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
        entry = re.search(r"^ENTRYPOINT (.*)$", stage, re.MULTILINE)
        assert entry is not None
        assert entry[1] == '["shunt", "node"]'
        assert "COPY deploy/ec2/host /opt/host" in stage


def settings_of(path: Path) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


# Scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell_and_may_be_run(name: str) -> None:
    path = HOST / "sbin" / name
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(path)], check=True)


async def test_a_host_finds_out_who_it_is_with_a_token(machine: Machine) -> None:
    fake = FakeEc2(INSTANCE)
    fake.told["local-hostname"] = "ip-10-42-0-7.ec2.internal"
    async with serving(fake) as url:
        status, said = await asyncio.to_thread(
            machine.runs, "shunt-who", AWS_EC2_METADATA_SERVICE_ENDPOINT=url
        )
        assert status == 0, said
        assert environment(said) == {
            "INSTANCE": INSTANCE,
            "ADDRESS": "127.0.0.1",
            "SHUNT_ROUTER_ROUTER_ID": INSTANCE,
            "SHUNT_NODE_ADVERTISE_HOST": "ip-10-42-0-7.ec2.internal",
        }
        del fake.told["local-hostname"]
        status, said = await asyncio.to_thread(
            machine.runs, "shunt-who", AWS_EC2_METADATA_SERVICE_ENDPOINT=url
        )
        assert status != 0
        assert "INSTANCE" not in said


class Store:
    """A Parameter Store that is a directory, behind the command that asks it."""

    def __init__(self, machine: Machine) -> None:
        self.root = machine.directory / "parameters"
        self.target = machine.directory / "certificates"
        self.machine = machine
        machine.plays(
            "aws",
            f"""while test $# -gt 0; do test "$1" = --name && name=$2; shift; done
            cat "{self.root}$name" """,
        )
        machine.plays("chown")

    def put(self, place: str, text: str, files: tuple[str, ...] = FILES) -> None:
        for file in files:
            path = self.root / f"shuntserve/{MESH}/certificates/{place}/{file}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{file} of {text}\n")

    def put_keys(self, text: str) -> None:
        path = self.root / f"shuntserve/{MESH}/keys"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def fetch(self, *roles: str) -> tuple[int, str]:
        return self.machine.runs(
            "shunt-certificates",
            *roles,
            MESH=MESH,
            AWS_REGION="us-east-1",
            INSTANCE=INSTANCE,
            CERTIFICATES=str(self.target),
        )

    def held(self, role: str) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.target / role).iterdir()}


def whole(text: str) -> dict[str, str]:
    return {file: f"{file} of {text}\n" for file in FILES}


def test_each_role_gets_its_own_certificate_and_nobody_else_can_read_it(machine: Machine) -> None:
    store = Store(machine)
    store.put("controller", "the controller")
    store.put("placement", "placement")
    assert store.fetch("controller", "placement") == (0, "")
    assert store.held("controller") == whole("the controller")
    assert store.held("placement") == whole("placement")
    paths = [*store.target.rglob("*")]
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
    assert {path.name for path in store.target.iterdir()} == {"controller", "placement"}


def test_what_names_this_instance_comes_before_what_is_for_all_nodes(machine: Machine) -> None:
    store = Store(machine)
    store.put("engine", "any node")
    assert store.fetch("engine")[0] == 0
    assert store.held("engine") == whole("any node")
    store.put("engine/i-0fedcba9876543210", "another")
    store.put(f"engine/{INSTANCE}", "this one")
    assert store.fetch("engine")[0] == 0
    assert store.held("engine") == whole("this one")


def test_half_a_certificate_replaces_none(machine: Machine) -> None:
    store = Store(machine)
    store.put("controller", "yesterday")
    assert store.fetch("controller")[0] == 0
    shutil.rmtree(store.root)
    store.put("controller", "today", FILES[:2])
    status, _ = store.fetch("controller")
    assert status == 0, "it goes on with what it has"
    assert store.held("controller") == whole("yesterday")


def test_a_router_gets_the_newest_keys_and_waits_for_its_first(machine: Machine) -> None:
    store = Store(machine)
    store.put("router", "the router")
    status, said = store.fetch("router")
    assert (status, f"/shuntserve/{MESH}/keys" in said) == (1, True)
    for keys in ("the first", "more"):
        store.put_keys(keys)
        assert store.fetch("router") == (0, "")
        assert store.held("router") == whole("the router") | {"keys.json": keys}
    (store.root / f"shuntserve/{MESH}/keys").unlink()
    assert store.fetch("router")[0] == 0, "it goes on with what it has"
    assert store.held("router")["keys.json"] == "more"
    assert (store.target / "router" / "keys.json").stat().st_mode & 0o077 == 0


def test_without_a_certificate_a_host_says_where_it_should_be(machine: Machine) -> None:
    store = Store(machine)
    store.put("tensorstore", "the store")
    status, said = store.fetch("router", "tensorstore")
    assert status == 1
    assert f"/shuntserve/{MESH}/certificates/router" in said
    assert store.held("tensorstore") == whole("the store"), "the others have theirs"


def test_a_role_runs_in_a_container_with_its_own_settings_and_certificate(machine: Machine) -> None:
    machine.plays("docker")
    status, said = machine.runs(
        "shunt-run",
        "engine",
        IMAGE="node:1.0",
        OPTIONS="--ipc host",
        GPU="/nowhere",
        SHUNT_NODE_STORE="s3://b/models",
        SHUNT_ENGINE_MEMORY_BYTES="1",
        OTEL_EXPORTER_OTLP_ENDPOINT="",
        AWS_REGION="us-east-1",
        AWS_SECRET_ACCESS_KEY="s3cret",
        MESH="prod",
    )
    assert status == 0, said
    ended, ran = machine.did()
    assert ended == "docker rm --force shunt-engine"
    words = ran.split()
    assert words[:3] == ["docker", "run", "--rm"]
    assert words[-1] == "node:1.0"
    assert {word for word in words if word.startswith("--env")} == {
        "--env=SHUNT_NODE_STORE",
        "--env=SHUNT_ENGINE_MEMORY_BYTES",
        "--env=OTEL_EXPORTER_OTLP_ENDPOINT",
        "--env=AWS_REGION",
    }
    assert "s3cret" not in ran
    assert "--ipc host" in ran
    assert "--gpus" not in ran
    assert "--privileged" not in ran
    assert "/etc/shuntserve/certificates/engine:/etc/shuntserve/certificates:ro" in words


def test_a_machine_with_gpus_gives_them_to_its_node(machine: Machine) -> None:
    machine.plays("docker")
    machine.runs("shunt-run", "engine", IMAGE="node:1.0", GPU=str(machine.log))
    assert "--gpus all" in machine.did()[-1]


def journal(machine: Machine, *, blank: bool) -> tuple[int, str]:
    """The volume is at another instance at first."""
    looks = machine.directory / "looks"
    disk = machine.directory / "disks"
    disk.mkdir()
    (disk / "nvme-Amazon_Elastic_Block_Store_vol0abc").touch()
    machine.plays(
        "aws",
        f"""case "$*" in
        *describe-volumes*)
            echo >> {looks}
            if test $(wc -l < {looks}) -gt 2; then echo {INSTANCE}; else echo i-2; fi
            ;;
        *attach-volume*) exit 1 ;;
        esac""",
    )
    machine.plays("blkid", "exit 2" if blank else "")
    machine.plays("mountpoint", "exit 1")
    for name in ("mkfs.xfs", "mount", "chown"):
        machine.plays(name)
    return machine.runs(
        "shunt-journal",
        AWS_REGION="us-east-1",
        VOLUME="vol-0abc",
        INSTANCE=INSTANCE,
        ADDRESS="10.42.0.9",
        ZONE="Z1",
        NAME="controller.prod.shunt.internal",
        JOURNAL=str(machine.directory / "data"),
        DISKS=str(disk),
        PAUSE_S="0",
    )


@pytest.mark.parametrize("blank", [True, False])
def test_a_controller_has_its_volume_before_its_name(machine: Machine, blank: bool) -> None:
    status, said = journal(machine, blank=blank)
    assert status == 0, said
    did = [" ".join(line.split()[:3]) for line in machine.did()]
    assert did.count("aws ec2 attach-volume") == 2, "until the instance before has let go"
    order = [line.split()[0] for line in machine.did() if not line.startswith("aws ec2")]
    formats = ["mkfs.xfs"] if blank else []
    assert order == ["blkid", *formats, "mountpoint", "mount", "chown", "aws"]
    batch = json.loads(machine.did()[-1].partition("--change-batch ")[2])
    (change,) = batch["Changes"]
    assert change["Action"] == "UPSERT"
    assert change["ResourceRecordSet"]["Name"] == "controller.prod.shunt.internal"
    assert change["ResourceRecordSet"]["ResourceRecords"] == [{"Value": "10.42.0.9"}]


def test_what_may_be_bought_is_fetched_and_kept(machine: Machine) -> None:
    market = machine.directory / "market"
    market.mkdir()
    variables: dict[str, Any] = {"MESH": MESH, "AWS_REGION": "x", "MARKET": str(market)}
    machine.plays("aws", "echo 'types: []'")
    assert machine.runs("shunt-types", **variables)[0] == 0
    assert (market / "types.yaml").read_text() == "types: []\n"
    machine.plays("aws", "exit 254")
    assert machine.runs("shunt-types", **variables)[0] == 0
    assert (market / "types.yaml").read_text() == "types: []\n"
    (market / "types.yaml").unlink()
    assert machine.runs("shunt-types", **variables)[0] != 0


def test_the_images_user_is_who_the_hosts_give_files_to() -> None:
    owner = "10001"
    for name in ("shunt-certificates", "shunt-disk", "shunt-journal"):
        assert f"{owner}:{owner}" in (HOST / "sbin" / name).read_text()
    for name in ("Dockerfile", "gpu.Dockerfile"):
        text = (ROOT / "deploy/images" / name).read_text()
        assert f"useradd --uid {owner} --gid {owner}" in text
