"""Whether a model's files can be served: asked before any weight of it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.model.config import ModelConfig, parse_config
from services.model.text_check import check_text


def check_model(config: Mapping[str, Any], files: Mapping[str, bytes]) -> ModelConfig:
    """The model's config. `files` are those beside the weights, by name.

    Raises InvalidArgument that names the file and the field which no service here can follow.
    """
    parsed = parse_config(config)
    check_text(config, parsed.vocab_size, files)
    return parsed
