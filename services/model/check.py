"""Whether a model's files can be served: asked before any weight of it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.model.backends import check_served
from services.model.outline import ModelOutline, outline_of
from services.model.text_check import check_text


def check_model(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ModelOutline:
    """The model's sizes. `files` are those beside the weights, by name.

    Raises InvalidArgument that names the file and the field which no service here can follow.
    """
    check_served(config)
    outline = outline_of(config)
    check_text(config, outline.vocab_size, files)
    return outline
