"""`shunt ec2 down` on a played cloud: whatever cuts it off, the same again ends the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.cli.ec2.bucket import files_prefix, left_behind
from services.cli.ec2.down import take_down
from services.cli.ec2.home import Home
from services.cli.ec2.machines import Machines
from services.cli.ec2.template import Template
from services.cli.mesh_directory import MeshError
from tests.ec2.cloud import Cloud

MESH = "ended"
CALLS = (
    "ListStackResources",
    "UpdateAutoScalingGroup",
    "TerminateInstances",
    "DeleteStack",
    "DescribeVolumes",
    "DeleteVolume",
)
"""Each is refused once, and then not again."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:Tried to parse:UserWarning"),  # moto knows nothing of it
    pytest.mark.filterwarnings("ignore:Exception.DependencyViolation:UserWarning"),
]


@pytest.fixture
def home(cloud: Cloud, tmp_path: Path) -> Home:
    """A mesh with its stack, two nodes, a volume that nobody deletes, and keys."""
    found = Home.open(MESH, "", tmp_path / "keys", print)
    given = {
        "MeshName": MESH,
        "GatewayCidr": "198.51.100.7/32",
        "ServicesImage": "registry/services:1",
        "NodeImage": "registry/node:1",
    }
    view = found.stack.deploy(Template.read(), given)
    found.keyring.publish(found.parameters, view.outputs["GatewayHost"])
    for number in (1, 2):
        cloud.start_stranger({"shuntserve:mesh": MESH, "shuntserve:node": f"node-{number}"})
    tags = [{"Key": "shuntserve:stack", "Value": MESH}]
    cloud.client("ec2").create_volume(
        AvailabilityZone="us-east-1a",
        Size=1,
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )
    return replace(found, machines=Machines(found.account, MESH, poll_s=0.01))


def test_one_that_is_cut_off_anywhere_goes_on_and_touches_no_strangers(
    cloud: Cloud, home: Home
) -> None:
    stranger = cloud.start_stranger({"shuntserve:mesh": "another"})
    before = {machine.instance_id for machine in home.machines.all()}
    ended = set[str]()
    for call in CALLS:
        cloud.errors[call] = [("UnauthorizedOperation", 403)]
        with pytest.raises(MeshError, match=f":{call}"):
            take_down(home, print, delete_models=False)
        assert cloud.errors[call] == []
        ended |= before - {machine.instance_id for machine in home.machines.all()}
    last = take_down(home, print, delete_models=False)
    assert ended == before
    assert [one.id for one in cloud.instances()] == [stranger]
    assert home.machines.volumes() == []
    assert home.parameters.names() == []
    assert not (home.keyring.directory / "authority.key").exists()
    assert {volume.size_gib for volume in last.volumes} >= {1}
    assert not home.stack.view().status
    # Once more there is nothing to end but what it left, when it is told so.
    again = take_down(home, print, delete_models=False)
    assert again.is_nothing
    assert again.left == last.left
    own = left_behind(home.account, MESH)
    assert own is not None
    assert own in last.left[0]
    assert take_down(home, print, delete_models=True).objects == 0
    assert left_behind(home.account, MESH) is None


def test_files_of_batches_go_with_the_mesh_and_models_stay(cloud: Cloud, home: Home) -> None:
    """More files than S3 lists in a page; those of a mesh that shares the bucket are not its."""
    bucket, s3 = home.stack.view().outputs["Bucket"], cloud.client("s3")
    files = [f"{files_prefix(MESH)}file-{number}" for number in range(1001)]
    others = [f"{files_prefix(MESH + '-too')}file-0", "models/objects/0"]
    for key in [*files, *others]:
        s3.put_object(Bucket=bucket, Key=key, Body=b"{}")
    ended = take_down(home, print, delete_models=False)
    assert ended.files == len(files)
    assert "ended 1001 files of batches" in ended.lines
    left = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert sorted(row["Key"] for row in left) == sorted(others)
    assert take_down(home, print, delete_models=True).objects == len(others)


def test_a_node_that_shows_late_is_ended_too(
    cloud: Cloud, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the controller had ordered when it ended."""
    delete = home.stack.delete
    late = list[str]()

    def delete_and_show(*_: Any) -> bool:
        late.append(cloud.start_stranger({"shuntserve:mesh": MESH, "shuntserve:node": "node-3"}))
        return delete()

    monkeypatch.setattr(type(home.stack), "delete", lambda self: delete_and_show())
    ended = take_down(home, print, delete_models=True)
    assert late[0] in {machine.instance_id for machine in ended.machines}
    assert cloud.instances() == []


def test_keys_of_another_authority_are_not_replaced(cloud: Cloud, tmp_path: Path) -> None:
    home = Home.open(MESH, "", tmp_path / "keys", print)
    other = Home.open(MESH, "", tmp_path / "others", print)
    assert home.keyring.publish(home.parameters, "gateway.example") == 5
    with pytest.raises(MeshError, match="another authority"):
        other.keyring.publish(other.parameters, "gateway.example")
    assert home.keyring.publish(home.parameters, "gateway.example") == 0
    # Another name of the gateway is in the certificates of those alone who answer there.
    assert home.keyring.publish(home.parameters, "moved.example") == 2
    home.parameters.delete(home.parameters.names())
