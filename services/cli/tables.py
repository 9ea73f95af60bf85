"""Tables for people, of which nothing is cut off: what does not fit goes on below."""

from __future__ import annotations

from rich.table import Column, Table


def text_table(*head: str, whole: str = "") -> Table:
    """One with these columns, and no rows yet; what stands in the column `whole` is for copying, so
    the others make room for it."""
    return Table(*(Column(name, overflow="fold", no_wrap=name == whole) for name in head))
