from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.certs import commands
from services.cli.certs.directory import create_authority, read, read_issued_in
from services.cli.ec2.account import Account
from services.cli.ec2.node_certificates import NodeCertificates
from services.common.errors import FailedPrecondition
from services.common.roles import Identity, Role
from tests.ec2.in_process import mocked

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
REGION = "eu-west-1"
"""Of these tests alone."""
PATH = "/shuntserve/mesh-1/certificates/engine"


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    """Of a played cloud; making one takes longer than any test here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        with mocked():
            yield Account.open(REGION)


@pytest.fixture
def of_nodes(account: Account, tmp_path: Path) -> Iterator[NodeCertificates]:
    """Leaves no instance and no parameter."""
    create_authority(tmp_path / "authority", "mesh-1", 30, NOW - 2 * HOUR)
    yield NodeCertificates(account, "mesh-1", tmp_path / "authority", 6 * HOUR)
    pages = account.client("ec2").pages("describe_instances")
    groups = (group for page in pages for group in page["Reservations"])
    started = [one["InstanceId"] for group in groups for one in group["Instances"]]
    if started:
        account.client("ec2").terminate_instances(InstanceIds=started)
    for name in _names(account):
        account.client("ssm").delete_parameter(Name=name)


def _start(account: Account, mesh: str = "mesh-1", node: str = "gpu-7") -> str:
    """An instance of a mesh; its id."""
    tags = {"shuntserve:mesh": mesh, "shuntserve:node": node}
    pairs = [{"Key": key, "Value": value} for key, value in tags.items() if value]
    started = account.client("ec2").run_instances(
        ImageId="ami-12345678",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": pairs}],
    )
    return str(started["Instances"][0]["InstanceId"])


def _described(account: Account, instance_id: str) -> dict[str, Any]:
    found = account.client("ec2").describe_instances(InstanceIds=[instance_id])
    instance: dict[str, Any] = found["Reservations"][0]["Instances"][0]
    return instance


def _fetch(account: Account, instance_id: str, into: Path) -> Path:
    """What the machine would fetch into its directory."""
    into.mkdir(exist_ok=True)
    for name in ("authority.pem", "certificate.pem", "key.pem"):
        asked = {"Name": f"{PATH}/{instance_id}/{name}", "WithDecryption": True}
        answer = account.client("ssm").get_parameter(**asked)
        (into / name).write_text(answer["Parameter"]["Value"])
    return into


def _names(account: Account) -> list[str]:
    pages = account.client("ssm").pages("get_parameters_by_path", Path="/", Recursive=True)
    return sorted(row["Name"] for page in pages for row in page["Parameters"])


def test_a_nodes_certificate_names_it_and_where_it_is(
    account: Account, of_nodes: NodeCertificates, tmp_path: Path
) -> None:
    instance_id = _start(account)
    assert of_nodes.look(NOW) == (1, [])
    fetched = _fetch(account, instance_id, tmp_path / "mine")
    issued, instance = read_issued_in(fetched), _described(account, instance_id)
    assert read(fetched).authority == (tmp_path / "authority" / "authority.pem").read_bytes()
    assert issued.wish.identity == Identity(Role.ENGINE, "gpu-7")
    assert set(issued.wish.hosts) == {
        *(instance["PrivateIpAddress"], instance["PrivateDnsName"], "127.0.0.1", "localhost")
    }
    assert issued.ends == NOW + 6 * HOUR


def test_its_machine_alone_may_read_it_and_the_key_is_encrypted(
    account: Account, of_nodes: NodeCertificates
) -> None:
    instance_id = _start(account)
    of_nodes.look(NOW)
    ssm = account.client("ssm")
    for name in _names(account):
        tags = ssm.list_tags_for_resource(ResourceType="Parameter", ResourceId=name)["TagList"]
        arn = f"arn:aws:ec2:{REGION}:{account.number}:instance/{instance_id}"
        assert tags == [{"Key": "shuntserve:instance", "Value": arn}], name
    asked = ssm.get_parameters_by_path(Path=f"{PATH}/{instance_id}", WithDecryption=True)
    kinds = {row["Name"].split("/")[-1]: row["Type"] for row in asked["Parameters"]}
    expected = ("String", "String", "SecureString")
    assert kinds == dict(
        zip(("authority.pem", "certificate.pem", "key.pem"), expected, strict=True)
    )


def test_it_is_renewed_when_it_is_due_and_not_before(
    account: Account, of_nodes: NodeCertificates, tmp_path: Path
) -> None:
    instance_id = _start(account)
    of_nodes.look(NOW)
    before = read(_fetch(account, instance_id, tmp_path / "before"))
    assert of_nodes.look(NOW + HOUR) == (0, [])
    assert read(_fetch(account, instance_id, tmp_path / "same")) == before
    assert of_nodes.look(NOW + 5 * HOUR) == (1, [])
    after = _fetch(account, instance_id, tmp_path / "after")
    assert read(after).key != before.key
    assert read_issued_in(after).ends == NOW + 11 * HOUR


@pytest.mark.parametrize("lacking", ["authority.pem", "certificate.pem", "key.pem"])
def test_what_was_half_put_is_put_whole(
    lacking: str, account: Account, of_nodes: NodeCertificates, tmp_path: Path
) -> None:
    instance_id = _start(account)
    of_nodes.look(NOW)
    account.client("ssm").delete_parameters(Names=[f"{PATH}/{instance_id}/{lacking}"])
    assert of_nodes.look(NOW) == (1, [])
    read(_fetch(account, instance_id, tmp_path / "mine"))


def test_what_is_gone_leaves_nothing_and_nothing_elses_is_touched(
    account: Account, of_nodes: NodeCertificates
) -> None:
    others = (f"{PATH}/key.pem", "/shuntserve/mesh-2/certificates/engine/i-1/key.pem")
    for name in others:
        account.client("ssm").put_parameter(Name=name, Value="x", Type="String")
    going, staying, _ = _start(account), _start(account, node="gpu-8"), _start(account, "mesh-2")
    assert of_nodes.look(NOW) == (2, [])
    account.client("ec2").terminate_instances(InstanceIds=[going])
    assert of_nodes.look(NOW) == (0, [])
    files = ("authority.pem", "certificate.pem", "key.pem")
    assert _names(account) == sorted([*others, *(f"{PATH}/{staying}/{file}" for file in files)])


def test_one_that_cannot_be_named_keeps_no_other_from_it(
    account: Account, of_nodes: NodeCertificates
) -> None:
    nameless, odd = _start(account, node=""), _start(account, node="a b")
    _start(account)
    issued, faults = of_nodes.look(NOW)
    assert issued == 1
    assert sorted(faults) == sorted(
        [
            f"{nameless} has no tag shuntserve:node",
            f"{odd}: a node has 1 to 128 letters, digits, dots, hyphens and underscores",
        ]
    )


def test_without_the_authority_nothing_is_asked_of_aws(
    account: Account, of_nodes: NodeCertificates
) -> None:
    (of_nodes.authority / "authority.key").unlink()
    with pytest.raises(FailedPrecondition, match="shunt certs init"):
        of_nodes.look(NOW)


def test_the_command_looks_once_or_says_what_is_wrong(
    account: Account, of_nodes: NodeCertificates, tmp_path: Path
) -> None:
    def shunt(*words: str) -> tuple[int, str]:
        named = ("--mesh", "mesh-1", "--region", REGION, "--once")
        ran = CliRunner().invoke(commands.app, ["instances", *named, *words])
        return ran.exit_code, ran.output

    _start(account)
    authority = ("--authority", str(of_nodes.authority))
    assert shunt(*authority) == (0, "issued 1\n")
    assert shunt(*authority) == (0, "")
    assert shunt("--authority", str(tmp_path))[0] == 2
    nameless = _start(account, node="")
    status, said = shunt(*authority)
    assert (status, nameless in said) == (1, True)
