"""Rules, dashboards and scrape configurations: each expression is parsed, and each name and label
in one is what services export, as their own registries have it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from services.common.notices import NoticeKind
from services.controller import target_page
from services.controller.core.cluster.actions import PipelineState
from services.controller.core.cluster.targets import LABELS
from services.controller.journal.journal import JournalRoom
from tests.monitoring import (
    CASES,
    DASHBOARDS,
    ROOT,
    RULES,
    SCRAPES,
    Told,
    of_dashboards,
    of_rules,
    of_variables,
)
from tests.tools import need

OF_TARGETS = {"job", "instance"}
DEFINED_IN: Mapping[str, set[str]] = {
    "services.cli.node.metrics": OF_TARGETS,
    "services.common.server": OF_TARGETS,
    "services.controller.metrics": OF_TARGETS,
    "services.engine.counters": {*OF_TARGETS, *LABELS},
    "services.router.metrics": OF_TARGETS,
    "services.tensorstore.__main__": OF_TARGETS,
}
"""Where services define metrics, and the labels that each series has of its target."""
SOURCE = {"type": "prometheus", "uid": "${source}"}


def _selectors(expression: promql.Expr) -> list[tuple[str, set[str]]]:
    """Names that it selects, each with the labels that it matches."""
    found: list[tuple[str, set[str]]] = []

    def look(part: promql.Expr) -> None:
        if isinstance(part, promql.VectorSelector):
            assert part.name is not None, "each selector has a name"
            assert not part.matchers.or_matchers
            found.append((part.name, {matcher.name for matcher in part.matchers.matchers}))

    promql.walk(expression, look)
    return found


def _grouped(expression: promql.Expr) -> Iterator[tuple[set[str], promql.Expr]]:
    """What its parts group by, and what each of them groups."""
    found: list[tuple[set[str], promql.Expr]] = []

    def look(part: promql.Expr) -> None:
        if isinstance(part, promql.AggregateExpr):
            labels = set() if part.modifier is None else set(part.modifier.labels)
            found.append((labels, part.expr))
        if isinstance(part, promql.BinaryExpr) and part.modifier is not None:
            assert part.modifier.matching is None, "none is joined by labels yet"

    promql.walk(expression, look)
    yield from found


def _grouping(text: str) -> set[str]:
    """Labels that an expression's series have, where it groups at all."""
    return set().union(*(labels for labels, _ in _grouped(promql.parse(text))))


def _exported() -> dict[str, set[str]]:
    """Labels of each name that a service exports, those of its target among them; and of each that
    a rule records."""
    names: dict[str, set[str]] = {"up": {*OF_TARGETS, *LABELS}}
    for module, target in DEFINED_IN.items():
        defined = importlib.import_module(module)
        mine = [value for value in vars(defined).values() if isinstance(value, MetricWrapperBase)]
        assert mine, module
        for name, collector in REGISTRY._names_to_collectors.items():
            if collector in mine:
                bucket = {"le"} if name.endswith("_bucket") else set()
                names[name] = {*collector._labelnames, *bucket, *target}
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                names[rule["record"]] = _grouping(rule["expr"])
    return names


EXPORTED = _exported()
EXPRESSIONS = [*of_rules(), *of_dashboards(), *of_variables()]
_SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}")


def test_there_are_rules_and_dashboards() -> None:
    assert len(EXPRESSIONS) > 60
    assert len(DASHBOARDS) == 2


@pytest.mark.parametrize("told", EXPRESSIONS, ids=lambda told: told.place)
def test_each_name_and_label_is_one_that_services_export(told: Told) -> None:
    expression = promql.parse(told.expression)
    selected = _selectors(expression)
    assert selected
    for name, labels in selected:
        assert name in EXPORTED, f"{name} is exported by nobody"
        assert labels <= EXPORTED[name], f"{name} has no label {labels - EXPORTED[name]}"
    groups = list(_grouped(expression))
    for by, grouped in groups:
        for name, _ in _selectors(grouped):
            assert by <= EXPORTED[name], f"{name} has no label {by - EXPORTED[name]}"
    left = [by for by, _ in groups] or [EXPORTED[name] for name, _ in selected]
    shown = set(_SHOWN.findall(told.shows))
    assert shown <= set().union(*left), f"no series has {shown - set().union(*left)}"


def test_a_name_that_nobody_exports_is_found() -> None:
    for told in (
        Told("name", "sum(rate(shunt_router_request_total[5m]))"),
        Told("matched", 'shunt_controller_nodes{stat="ready"}'),
        Told("grouped", "sum by (states) (shunt_controller_nodes)"),
        Told("shown", "sum by (state) (shunt_controller_nodes)", "{{kind}}"),
    ):
        with pytest.raises(AssertionError):
            test_each_name_and_label_is_one_that_services_export(told)


def test_values_that_are_matched_are_values_that_there_are() -> None:
    known = {
        ("shunt_controller_pipelines", "state"): set(PipelineState),
        ("shunt_controller_journal_room", "left"): set(JournalRoom),
        ("shunt_controller_notices_total", "kind"): set(NoticeKind),
    }
    checked = set()
    for told in EXPRESSIONS:

        def look(part: promql.Expr) -> None:
            if not isinstance(part, promql.VectorSelector):
                return
            for matcher in part.matchers.matchers:
                values = known.get((part.name or "", matcher.name))
                if values is not None:
                    checked.add(part.name)
                    assert set(matcher.value.split("|")) <= values, f"{part.name}: {matcher}"

        promql.walk(promql.parse(told.expression), look)
    assert len(checked) == len(known)


def test_each_alert_says_how_grave_it_is_and_stands_in_the_documentation() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("page", "ticket")
                assert set(rule["annotations"]) == {"summary", "description"}
                assert f"`{rule['alert']}`" in page


def test_each_alert_fires_in_a_case_and_in_another_does_not() -> None:
    told: dict[str, set[bool]] = {}
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for asked in case["alert_rule_test"]:
            told.setdefault(asked["alertname"], set()).add("exp_alerts" in asked)
    rules = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert told == {alert: {True, False} for alert in alerts}


def test_what_cases_are_made_of_is_what_services_export() -> None:
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for series in case["input_series"]:
            test_each_name_and_label_is_one_that_services_export(
                Told(case["name"], series["series"])
            )


def test_promtool_takes_each_expression_and_plays_each_case(tmp_path: Path) -> None:
    need(promtool="prometheus")
    rules = [
        {"record": f"told:{number}", "expr": told.expression}
        for number, told in enumerate([*of_dashboards(), *of_variables()])
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    for asked in (("check", "rules", str(path)), ("test", "rules", str(CASES))):
        done = subprocess.run(
            ["promtool", *asked], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
    broken = yaml.safe_dump({"groups": [{"name": "g", "rules": [{"record": "a", "expr": "sum("}]}]})
    path.write_text(broken)
    refused = subprocess.run(["promtool", "check", "rules", str(path)], check=False, timeout=60)
    assert refused.returncode != 0


def test_what_the_documentation_names_is_exported() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"`((?:vllm:|shunt_)[a-z0-9_]+)`", page))
    bases = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in EXPORTED}
    assert len(named) > 20
    assert named <= bases, named - bases


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_panels_of_its_own_and_one_source(path: Path) -> None:
    board = json.loads(path.read_text())
    panels: list[dict[str, Any]] = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for part in (panel, *panel.get("targets", ())):
            assert part.get("datasource", SOURCE) == SOURCE
    variables = {f"${variable['name']}" for variable in board["templating"]["list"]}
    text = json.dumps(panels)
    assert {name for name in ("$model", "$pipeline") if name in text} <= variables


@pytest.mark.parametrize("path", SCRAPES, ids=lambda path: path.stem)
def test_engines_are_found_by_the_controller_whose_labels_are_kept(path: Path) -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(path.read_text())["scrape_configs"]}
    assert set(jobs) == {"router", "services", "engines"}
    [found] = jobs["engines"]["http_sd_configs"]
    assert found["url"].endswith(f":9100{target_page.PATH}")
    assert jobs["engines"]["honor_labels"], "a head's own pipeline counts"
    [kept] = jobs["engines"]["relabel_configs"]
    assert kept["action"] == "labelmap"
    for name in LABELS:
        assert re.fullmatch(kept["regex"], f"__meta_shunt_{name}")
