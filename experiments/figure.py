"""A figure of a table: one column as bars, by matplotlib (the extra `experiments`)."""

from __future__ import annotations

from io import BytesIO

from experiments.table import Rows


def bars(title: str, column: str, rows: Rows) -> bytes:
    """A PNG; rows that have no such figure are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {row: cells.get(column) for row, cells in rows.items()}
    values = {row: cell for row, cell in found.items() if isinstance(cell, int | float)}
    figure = Figure(figsize=(9, 1.0 + 0.28 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh(list(values), list(values.values()), color="C0")
    axes.invert_yaxis()
    axes.set_xlabel(column)
    axes.set_title(title, fontsize="medium")
    target = BytesIO()
    figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    return target.getvalue()
