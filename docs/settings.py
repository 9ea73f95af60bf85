"""Writes docs/settings.md: every setting of every service, from the classes that read them."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from services.cli.node.settings import NodeSettings
from services.common import api_keys, mesh_token
from services.common.settings import ServiceSettings, TlsSettings
from services.controller.providers.ec2.settings import Ec2Settings
from services.controller.settings import ControllerSettings
from services.engine.settings import EngineSettings
from services.launcher.settings import LauncherSettings
from services.placement.settings import PlacementSettings
from services.router.settings import RouterSettings
from services.tensorstore.settings import TensorStoreSettings

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

Every setting that a service reads from its environment, once, when it starts; `make docs` writes
this page from the classes that read them. `shunt up` sets what a mesh needs, and hands on what is
set where it is called: `SHUNT_CONTROLLER_NODE_LOST_S=2 shunt up` is a mesh that gives a silent node
up sooner. A setting that does not read, or is out of its range, ends the service with status 2 and
its name.

Names end in their unit: `_s` is seconds, `_bytes` bytes. A list or a table is JSON, and a part of a
setting that has parts is named behind two underscores: `SHUNT_CONTROLLER_EC2__REGION`.
"""
EVERY = "SHUNT_<SERVICE>_"


@dataclass(frozen=True, slots=True)
class Section:
    """Settings of one class."""

    title: str
    about: str
    settings: type[BaseModel]
    prefix: str


SECTIONS = (
    Section(
        "Every service",
        "`<SERVICE>` is CONTROLLER, ROUTER, ENGINE, TENSORSTORE, PLACEMENT, LAUNCHER or NODE.",
        ServiceSettings,
        EVERY,
    ),
    Section(
        "Certificates",
        "Of all services of the environment; a service's own are"
        " `SHUNT_<SERVICE>_TLS__CERTIFICATE` and so on. All three files, or none"
        " ([security.md](security.md)).",
        TlsSettings,
        "SHUNT_TLS_",
    ),
    Section("Router", "", RouterSettings, "SHUNT_ROUTER_"),
    Section("Controller", "", ControllerSettings, "SHUNT_CONTROLLER_"),
    Section(
        "Nodes on EC2",
        "Of the controller, where its provider is `ec2` ([ec2.md](ec2.md)).",
        Ec2Settings,
        "SHUNT_CONTROLLER_EC2__",
    ),
    Section(
        "Engine",
        "A provider sets some of them for the nodes that it starts; others reach a local node"
        " from where `shunt up` was called.",
        EngineSettings,
        "SHUNT_ENGINE_",
    ),
    Section("Tensor store", "", TensorStoreSettings, "SHUNT_TENSORSTORE_"),
    Section("Placement", "", PlacementSettings, "SHUNT_PLACEMENT_"),
    Section(
        "Launcher",
        "Starts containers ([docker.md](docker.md)).",
        LauncherSettings,
        "SHUNT_LAUNCHER_",
    ),
    Section("Node", "`shunt node` ([node.md](node.md)).", NodeSettings, "SHUNT_NODE_"),
)
TABLE = ("| setting | default | range | |", "|---|---|---|---|")
OTHERS = {
    mesh_token.VARIABLE: "The token by which the services of a mesh know one another; an engine's"
    " is its node's alone ([security.md](security.md)).",
    mesh_token.FILE_VARIABLE: "A file that holds it.",
    api_keys.VARIABLE: "The API key that `shunt chat` and `shunt batch` show.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "Where traces go, as OpenTelemetry has it; unset: nowhere.",
}
"""Variables that no class has, and what they are for."""


def page() -> str:
    """The whole of it."""
    parts = [_section(section) for section in SECTIONS]
    rows = [f"| `{name}` | {text} |" for name, text in OTHERS.items()]
    parts.append("\n".join(("## Others", "", "| variable | |", "|---|---|", *rows, "")))
    return "\n".join((HEAD, *parts))


def names() -> Iterator[str]:
    """Of every variable that a class reads."""
    for section in SECTIONS:
        for name, _ in _own(section.settings):
            yield f"{section.prefix}{name.upper()}"


def _section(section: Section) -> str:
    said = _docstrings(section.settings)
    rows = [
        f"| `{section.prefix}{name.upper()}` | {_default(name, field)} | {_range(name, field)} |"
        f" {said.get(name, '')} |"
        for name, field in _own(section.settings)
    ]
    about = (section.about, "") if section.about else ()
    return "\n".join((f"## {section.title}", "", *about, *TABLE, *rows, ""))


def _own(kind: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Fields that every service has not, or has otherwise: the class's own before its bases'."""
    inherited = {} if kind is ServiceSettings else ServiceSettings.model_fields
    own = vars(kind)["__annotations__"]
    for name in sorted(kind.model_fields, key=lambda name: name not in own):
        field = kind.model_fields[name]
        if name not in inherited or field.default != inherited[name].default:
            yield name, field


def _docstrings(kind: type[BaseModel]) -> Mapping[str, str]:
    """What stands behind each field in the sources of the class and its bases, on one line."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not (issubclass(one, BaseModel) and one.__module__.startswith("services.")):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, behind in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = behind.value if isinstance(behind, ast.Expr) else None
                said = str(text.value) if isinstance(text, ast.Constant) else ""
                found[field.target.id] = " ".join(said.split()).replace("|", "\\|")
    return found


def _default(name: str, field: FieldInfo) -> str:
    """What counts where nothing is said; nothing where that is nothing, or its text says what."""
    if field.is_required():
        return "needed"
    value = field.default
    if field.default_factory is not None or value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name == "vllm_python":
        return "this Python"
    if not isinstance(value, int | float):
        return f"`{value}`"
    size = _size(value) if name.endswith("_bytes") else ""
    return f"`{_number(value)}`" + (f" ({size})" if size else "")


def _number(value: float) -> str:
    return f"{value:.12g}"


def _size(value: float) -> str:
    """Bytes as people say them; empty where they are few, or not round."""
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    return next((f"{value / n:g} {unit}" for n, unit in units if not value % n and value), "")


def _range(name: str, field: FieldInfo) -> str:
    """What it may be."""
    kinds = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if words:
        return ", ".join(f"`{word}`" for word in words)
    if bool in kinds:
        return "`true`, `false`"
    bounds = _bounds(field.metadata, _size if name.endswith("_bytes") else _number)
    for kind in kinds:
        if kind is int or kind is float:
            return bounds or "any number"
        if isinstance(kind, type) and issubclass(kind, Path):
            return "a path"
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return "its parts"
        if get_origin(kind) in (tuple, dict):
            return "JSON"
    patterns = [one.pattern for one in field.metadata if getattr(one, "pattern", None)]
    return f"`{patterns[0]}`".replace("|", "\\|") if patterns else "text"


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    return (annotation,)


def _bounds(metadata: list[Any], shown: Callable[[float], str]) -> str:
    told = {}
    for one in metadata:
        for name in ("ge", "gt", "le", "lt"):
            if (value := getattr(one, name, None)) is not None:
                told[name] = shown(value) or _number(value)
    least = told.get("ge") or (f"over {told['gt']}" if "gt" in told else "")
    most = told.get("le") or (f"under {told['lt']}" if "lt" in told else "")
    if least and most:
        return f"{least} to {most}"
    if least:
        return least if "gt" in told else f"{least} or more"
    return f"up to {most}" if most else ""


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
