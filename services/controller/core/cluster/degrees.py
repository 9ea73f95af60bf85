"""Whether a model divides among as many ranks as a plan has for a stage of it."""

from __future__ import annotations

import json

from services.common.errors import InvalidArgument
from services.controller.core.model_facts import ModelFacts
from services.model.config import parse_config


def check_degree(facts: ModelFacts, degree: int, field: str) -> None:
    """Raises InvalidArgument, naming the field and what does not divide. Of a model whose config
    says nothing here, the node that is to load the stage decides."""
    try:
        divisible = parse_config(json.loads(facts.config_json)).tensor_parallel
    except (InvalidArgument, ValueError):
        return
    try:
        divisible.check_degree(degree)
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=field) from None
