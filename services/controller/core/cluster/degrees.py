"""Whether a stage can have as many ranks as a plan says: its model divides among them, and its node
has a device for each."""

from __future__ import annotations

import json

from services.common.errors import InvalidArgument
from services.controller.core.model_facts import ModelFacts
from services.model.config import parse_config


def check_devices(degree: int, devices: int | None, whose: str, field: str) -> None:
    """Raises InvalidArgument, naming the field and who has too few. Where nobody knows how many
    there are (None), the node that is to load the stage decides."""
    if devices is not None and degree > devices:
        message = f"TP degree {degree} takes as many devices, and {whose} has {devices}"
        raise InvalidArgument(message, field=field)


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
