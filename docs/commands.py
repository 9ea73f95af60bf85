"""Writes docs/commands.md: every command of `shunt` with its arguments and options, from what it
says at --help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from services.cli import __main__ as cli

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Commands

Every command of `shunt`, as its `--help` has it; `make docs` writes this page from there. What they
are for stands in [README.md](../README.md#everyday-commands) and on the pages that it names.

A command ends with status 0, or with another one and the reason on stderr: 2 where its arguments or
a setting do not read, 130 behind Ctrl-C. Commands about a mesh speak to the one in `--data-dir`.
"""


def page() -> str:
    """The whole of it."""
    parts = [(command, (name,)) for name, command in _named(cli.app) if name not in cli.MOUNTED]
    parts += [
        (command, (name, below))
        for name in cli.MOUNTED
        for below, command in _named(cli.commands_of(name))
    ]
    return "\n".join([HEAD, *(_section(path, command) for command, path in parts)])


def _named(found: typer.Typer) -> Iterable[tuple[str, Any]]:
    commands: Mapping[str, Any] = typer.main.get_group(found).commands
    return commands.items()


def _section(path: tuple[str, ...], command: Any) -> str:
    options = [one for one in command.params if one.param_type_name == "option"]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(("shunt", *path, *(_usage(one) for one in arguments)))
    lines = [
        f"## `{usage}`",
        "",
        " ".join(command.help.split()),
        "",
        "| | default | |",
        "|---|---|---|",
    ]
    lines += [f"| `{_name(one)}` | {_default(one)} | {_help(one)} |" for one in arguments]
    lines += [f"| {_names(one)} | {_default(one)} | {_help(one)} |" for one in options]
    return "\n".join((*lines, ""))


def _name(argument: Any) -> str:
    return str(argument.name).strip("_").upper()


def _usage(argument: Any) -> str:
    name = _name(argument) + ("…" if argument.nargs < 0 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _help(parameter: Any) -> str:
    return " ".join((parameter.help or "").split()).replace("|", "\\|")


def _default(parameter: Any) -> str:
    """What counts where nothing is said; nothing where its help says that, or a flag is not set."""
    value = parameter.default() if callable(parameter.default) else parameter.default
    if parameter.required:
        return "needed"
    if value is None or isinstance(value, bool) or value in ("", [], ()):
        return ""
    shown = (
        ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(getattr(value, "value", value))
    )
    return f"`{shown.removeprefix(f'{ROOT}/')}`"


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
