"""The lines that this process logs, as a service of ours would write them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.common import logs


class LogLines(logging.Handler):
    """Renders each record where it is logged, for a line's ids come from the context there."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.setFormatter(logs.JsonFormatter("tested"))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def named(self, message: str) -> list[dict[str, Any]]:
        """The lines with this message."""
        return [line for line in self.all() if line["message"] == message]

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.texts]


@contextmanager
def log_lines() -> Iterator[LogLines]:
    """What is logged inside the block, from INFO on."""
    lines, root = LogLines(), logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(lines)
