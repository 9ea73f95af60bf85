"""Nothing of a table is cut off where there is little room."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from services.cli.tables import text_table


def test_what_does_not_fit_goes_on_below_but_for_what_is_copied() -> None:
    table = text_table("offer", "instance", whole="instance")
    table.add_row("g6e.xlarge/use1-az1/spot", "i-0123456789abcdef0")
    console = Console(width=36, file=StringIO(), record=True)
    console.print(table)
    said = console.export_text()
    cells = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    offer, instances = (list(filter(None, map(str.strip, one))) for one in zip(*cells, strict=True))
    assert "".join(offer) == "g6e.xlarge/use1-az1/spot"
    assert len(offer) > 1
    assert instances == ["i-0123456789abcdef0"]
