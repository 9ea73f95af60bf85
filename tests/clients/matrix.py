"""Which clients there are, what each one is asked to do, and what it is known not to get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-clients"
PAGE = ROOT / "docs" / "clients.md"


@dataclass(frozen=True)
class Client:
    """A package that talks to an OpenAI endpoint, and the script that has it do so."""

    package: str
    registry: str
    script: str
    environment: str = "openai3"
    """Of a package of Python, by the version of OpenAI's own that it is with."""

    @property
    def name(self) -> str:
        """As the page and the tests have it."""
        return f"{self.package} ({self.registry})"

    @property
    def version(self) -> str:
        """The one that is pinned."""
        if self.registry == "npm":
            found: str = json.loads((HERE / "node" / "package.json").read_text())["dependencies"][
                self.package
            ]
            return found
        pins = (HERE / f"{self.environment}.txt").read_text().splitlines()
        return dict(pin.split("==") for pin in pins)[self.package]

    @property
    def command(self) -> tuple[str, ...]:
        """To be followed by the base URL."""
        if self.registry == "npm":
            return ("node", str(ENVIRONMENT / "node" / self.script))
        python = ENVIRONMENT / self.environment / "bin" / "python"
        return (str(python), "-W", "ignore", str(HERE / "python" / self.script))


CLIENTS = (
    Client("openai", "PyPI", "with_openai.py"),
    Client("openai", "npm", "with_openai.mjs"),
    Client("langchain-openai", "PyPI", "with_langchain.py"),
    Client("llama-index-llms-openai-like", "PyPI", "with_llama_index.py", "openai2"),
    Client("litellm", "PyPI", "with_litellm.py"),
    Client("pydantic-ai-slim", "PyPI", "with_pydantic_ai.py"),
    Client("instructor", "PyPI", "with_instructor.py", "openai2"),
    Client("ai", "npm", "with_ai_sdk.mjs"),
    Client("llm", "PyPI", "with_llm.py"),
)

LACKING: Mapping[tuple[str, str], str] = {}
"""Cases that do not pass, by client and case, and why not; one that passes does not belong here."""

Outcomes = Mapping[str, Mapping[str, str | None]]
"""By client and case: None where it passed, else how it failed."""


def page(outcomes: Outcomes) -> str:
    """docs/clients.md for what became of the cases."""
    lines = [
        "# Clients",
        "",
        "What the first pages of clients and frameworks show, asked of a router by the packages",
        "themselves, unmodified: `make clients` makes environments with them, `tests/clients` runs",
        "them, and `make clients-page` writes this page from what became of it. The heads behind",
        "that router follow grammars and compute nothing: what is tried is the door, not a model.",
        "",
        "| client | version | passes | does not |",
        "|---|---|---|---|",
    ]
    for client in CLIENTS:
        told = outcomes[client.name]
        passed = ", ".join(f"`{case}`" for case, failure in told.items() if failure is None)
        failed = "; ".join(
            f"`{case}`: {LACKING.get((client.name, case), failure)}"
            for case, failure in told.items()
            if failure is not None
        )
        lines.append(f"| {client.name} | {client.version} | {passed} | {failed} |")
    return "\n".join(lines) + "\n"
