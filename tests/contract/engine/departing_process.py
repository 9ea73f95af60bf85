"""The engine's own program over the tiny backend; its loads never end when it is told so."""

from __future__ import annotations

import sys

from services.engine import __main__ as engine
from services.engine.native.loader import NativeOptions
from tests.contract.engine.tiny import TinyLoader


class Loader(TinyLoader):
    """Stands in for the native loader."""

    def __init__(self, options: NativeOptions) -> None:
        super().__init__(step_s=0.02)
        if sys.argv[1:] == ["stuck"]:
            self.gate.set()

    def warm(self) -> None:
        """There is nothing to import."""


if __name__ == "__main__":
    engine.NativeLoader = Loader  # type: ignore[assignment, misc]
    engine.main()
