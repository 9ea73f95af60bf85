"""The engine's own program over the tiny backend; its loads never end when it is told so."""

from __future__ import annotations

import sys

from services.engine import __main__ as engine
from services.engine.settings import EngineSettings
from tests.contract.engine.tiny import TinyLoader


class Loader(TinyLoader):
    """Stands in for a backend's loader."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(step_s=0.02)
        if sys.argv[1:] == ["stuck"]:
            self.gate.set()


if __name__ == "__main__":
    engine.make_loader = Loader  # type: ignore[assignment]
    engine.main()
