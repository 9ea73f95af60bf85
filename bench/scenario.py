"""A scenario: the nodes of a mesh, their market, and what is asked of them; read from one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Self

import yaml
from pydantic import Field, model_validator

from services.common.errors import InvalidArgument
from services.common.speeds import parse_speeds
from services.common.yaml_file import Row, read_yaml
from services.controller.core.cluster.market import Offer
from services.controller.providers.market_file import MarketDocument, MarketEvent, read_market

NODE_MEMORY_BYTES = 2 << 30
"""Of a node whose offer names none."""
MAX_FOR_S = 3600.0
MAX_ARRIVALS_PER_S = 100.0
MAX_TOKENS = 4096
Range = tuple[
    Annotated[int, Field(ge=1, le=MAX_TOKENS)], Annotated[int, Field(ge=1, le=MAX_TOKENS)]
]
WORDS = (
    *("river", "stone", "letter", "winter", "market", "engine", "garden", "signal", "bridge"),
    *("island", "copper", "lantern", "sailor", "window", "harvest", "mirror", "thunder", "valley"),
)


class LoadRow(Row):
    """What is asked for: requests come one by one, whether or not those before are answered."""

    for_s: float = Field(gt=0, le=MAX_FOR_S, allow_inf_nan=False)
    """The last one comes no later, counted from ready."""
    arrivals_per_s: float = Field(gt=0, le=MAX_ARRIVALS_PER_S, allow_inf_nan=False)
    """Mean, the pauses between them drawn from an exponential distribution."""
    prompt_words: Range
    """From and to, drawn evenly; as is the next."""
    output_tokens: Range
    within_s: float = Field(gt=0, le=MAX_FOR_S, allow_inf_nan=False)
    """An answer that is whole so soon behind its request counts for the goodput."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("prompt_words", "output_tokens"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low} to {high}")
        return self


class ScenarioDocument(MarketDocument):
    """The whole file."""

    nodes: str
    """Speeds of the first nodes, as in `shunt up --node-speeds`."""
    load: LoadRow


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    at_s: float
    words: tuple[str, ...]
    output_tokens: int
    seed: int | None
    """None: greedy."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A file that was read."""

    nodes: str
    offers: tuple[Offer, ...]
    events: tuple[MarketEvent, ...]
    asks: tuple[Ask, ...]
    within_s: float
    market: str
    """Its part that is a market file."""


def read_scenario(path: Path) -> Scenario:
    """Raises InvalidArgument, naming file, entry and field, and NotFound."""
    document = read_yaml(path, ScenarioDocument)
    try:
        parse_speeds(document.nodes)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path.name}: nodes: {error.message}", field="nodes") from None
    market = document.model_dump(include={"offers", "events"}, exclude_none=True, mode="json")
    script = read_market(
        path, memory_bytes=NODE_MEMORY_BYTES, device_type="cpu", kind=ScenarioDocument
    )
    script.shapes((speed, "native") for part in parse_speeds(document.nodes) for speed in part)
    return Scenario(
        document.nodes,
        script.offers,
        script.events,
        _asks(document.load),
        document.load.within_s,
        yaml.safe_dump(market),
    )


def _asks(load: LoadRow) -> tuple[Ask, ...]:
    """Every other one is greedy, the rest are sampled; the same for the same seed."""
    random, asks, at_s = Random(load.seed), list[Ask](), 0.0
    while (at_s := at_s + random.expovariate(load.arrivals_per_s)) <= load.for_s:
        words = tuple(random.choice(WORDS) for _ in range(random.randint(*load.prompt_words)))
        tokens, seed = random.randint(*load.output_tokens), random.randrange(1 << 31)
        asks.append(Ask(at_s, words, tokens, seed if len(asks) % 2 else None))
    return tuple(asks)
