"""Writes the tables of fields that docs/http-api.md holds, from those that the router reads by."""

from __future__ import annotations

import re
from pathlib import Path

from services.router.openai.fields import TABLES, rows
from services.router.openai.responses.fields import RESPONSE

PAGE = Path(__file__).parent / "http-api.md"


def main() -> None:
    text = PAGE.read_text()
    for name, table in {**TABLES, "response": RESPONSE}.items():
        begin, end = f"<!-- fields of {name} -->", "<!-- end of fields -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        shown = "\n".join([begin, *rows(table), end])
        text = pattern.sub(lambda _, shown=shown: shown, text)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
