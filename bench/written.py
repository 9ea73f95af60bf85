"""What a bench found, as JSON: shown, and kept where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def show(report: Mapping[str, Any], out: Path | None) -> None:
    """Prints it, and writes it to the file `out`, whose folder is made."""
    text = json.dumps(report, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
