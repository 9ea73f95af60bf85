"""The template as text: what linters say of it, and what it may not say."""

from __future__ import annotations

import json
from typing import Any

from cfnlint import ManualArgs, lint

from services.controller.providers.ec2.settings import Ec2Settings
from services.controller.providers.ec2.table import read_table
from tests.unit.deploy.stack import PAPER, ROOT, TEMPLATE, parsed

MAX_BODY_BYTES = 51_200
"""Of a template that CloudFormation is handed, and not shown in a bucket."""
NOT_HEEDED = {
    ("Bucket", "CKV_AWS_18"),
    ("Bucket", "CKV_AWS_21"),
    ("Queue", "CKV_AWS_27"),
    ("Gateway", "CKV_AWS_91"),
    ("Gateway", "W1030"),
    ("HttpListener", "CKV_AWS_2"),
    ("HttpListener", "CKV_AWS_103"),
}
"""What linters say and the template does not do; the reasons stand in it. `make lint-infra` is
checkov, whose own requirements do not go with ours."""


def test_cfn_lint_finds_nothing() -> None:
    found = lint(TEMPLATE.read_text(), config=ManualArgs(regions=["us-east-1", "eu-west-1"]))
    assert not [str(match) for match in found]


def test_cfn_lint_would_find_a_mistake() -> None:
    wrong = TEMPLATE.read_text().replace("HttpTokens:", "HttpToken:", 1)
    assert lint(wrong, config=ManualArgs(regions=["us-east-1"]))


def test_the_linters_exceptions_are_these_and_have_reasons() -> None:
    named = set[tuple[str, str]]()
    for name, resource in parsed()["Resources"].items():
        said: dict[str, Any] = resource.get("Metadata", {})
        for skipped in said.get("checkov", {}).get("skip", ()):
            assert len(skipped["comment"].split()) >= 5, skipped
            named.add((name, skipped["id"]))
        for check in said.get("cfn-lint", {}).get("config", {}).get("ignore_checks", ()):
            named.add((name, check))
    assert named == NOT_HEEDED


def test_the_template_can_be_handed_over_whole() -> None:
    assert len(TEMPLATE.read_bytes()) < MAX_BODY_BYTES


def test_who_may_call_the_gateway_is_asked_for_and_everybody_is_no_default() -> None:
    parameters = parsed()["Parameters"]
    without = {name for name, said in parameters.items() if "Default" not in said}
    assert without == {"GatewayCidr", "ServicesImage", "NodeImage"}
    assert parameters["OperatorCidr"]["Default"] == ""
    assert parameters["PrometheusCidr"]["Default"] == ""
    assert not [name for name, said in parameters.items() if said.get("Default") == "0.0.0.0/0"]


def test_defaults_are_the_controllers_own_and_types_those_of_the_file() -> None:
    defaults = {name: said.get("Default") for name, said in parsed()["Parameters"].items()}
    fields = Ec2Settings.model_fields
    assert defaults["MaxInstances"] == fields["max_instances"].default
    assert defaults["MaxDollarsPerHour"] == fields["max_dollars_per_hour"].default
    types = read_table(ROOT / "deploy/ec2/types.yaml").types
    assert set(defaults["InstanceTypes"].split(",")) == types.keys()


def test_the_papers_cluster_is_a_file_of_parameters() -> None:
    rows = json.loads(PAPER.read_text())
    chosen = {row["ParameterKey"]: row["ParameterValue"] for row in rows}
    declared = parsed()["Parameters"]
    assert chosen.keys() <= declared.keys()
    counts = dict(part.split(":") for part in chosen["FirstNodes"].split(","))
    assert counts == {"g5.12xlarge": "2", "g6.12xlarge": "3", "g6e.xlarge": "4"}
    assert set(chosen["InstanceTypes"].split(",")) == counts.keys()
    types = read_table(ROOT / "deploy/ec2/paper-types.yaml").types
    assert {name: str(kind.count) for name, kind in types.items()} == counts
    dollars = sum(types[name].price_per_hour * int(count) for name, count in counts.items())
    assert dollars <= float(chosen["MaxDollarsPerHour"])
    assert sum(map(int, counts.values())) <= int(chosen["MaxInstances"])
    for name, value in chosen.items():
        allowed = declared[name].get("AllowedValues")
        assert allowed is None or value in allowed, name
