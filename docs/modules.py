"""Writes the line a module that ARCHITECTURE.md holds, from the modules' own docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- modules -->", "<!-- end of modules -->"
FOLDERS = (
    *("common", "model", "router", "controller", "launcher"),
    *("engine", "tensorstore", "placement", "cli"),
)


def line(path: Path, folder: Path) -> str:
    """One row of a table: the module's name and the first sentence of its docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return f"| `{path.relative_to(folder).with_suffix('')}` | {first.replace('|', '/')} |"


def section(folder: Path) -> str:
    """A heading and a table of a folder's modules."""
    paths = sorted(p for p in folder.rglob("*.py") if p.name != "__init__.py")
    title = folder.relative_to(ROOT)
    rows = "\n".join(line(path, folder) for path in paths)
    return f"### {title}\n\n| module | what it is |\n|---|---|\n{rows}"


def main() -> None:
    folders = [*(ROOT / "services" / name for name in FOLDERS), ROOT / "simulator"]
    text = "\n\n".join(section(folder) for folder in folders)
    page = PAGE.read_text()
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page))


if __name__ == "__main__":
    main()
