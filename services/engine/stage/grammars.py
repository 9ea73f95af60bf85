"""What a model's last stage compiles grammars with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.model.grammar import Grammars, LateGrammars


def grammars_of(
    config: Mapping[str, Any], files: Callable[[], Mapping[str, bytes]]
) -> LateGrammars:
    """As its router's, from the same files, which are read when there is need of them."""

    def make() -> Grammars:
        from services.model.outline import outline_of
        from services.model.text import ModelText

        return ModelText(config, outline_of(config).vocab_size, files()).grammars()

    return LateGrammars(make)
