"""What deploy/ has for those who watch a mesh, as its files say it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
CASES = RULES.with_name("rules_test.yaml")
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
SCRAPES = sorted((ROOT / "deploy" / "prometheus").glob("*-scrape.yaml"))
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$model": ".*", "$pipeline": ".*"}


@dataclass(frozen=True)
class Told:
    """An expression, and where it stands."""

    place: str
    expression: str
    shows: str = ""
    """What is written with its labels: a legend, annotations."""


def of_rules() -> Iterator[Told]:
    """Of each rule."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            shows = " ".join(rule.get("annotations", {}).values())
            yield Told(rule.get("alert") or rule["record"], rule["expr"], shows)


def of_dashboards() -> Iterator[Told]:
    """Of each panel, with its variables filled in."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                place = f"{path.name}: {panel['title']}"
                yield Told(place, _filled(target["expr"]), target["legendFormat"])


def of_variables() -> Iterator[Told]:
    """Of each variable of a dashboard: whose label's values it has, and which label."""
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked is not None, variable
                place = f"{path.name}: ${variable['name']}"
                yield Told(place, _filled(asked[1]), f"{{{{{asked[2]}}}}}")


def _filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression
