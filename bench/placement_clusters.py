"""Random clusters for benches and tests: the generator and its seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping

from services.placement.estimate.catalogue import load_catalogue
from services.placement.estimate.cluster import CandidateNode, described

SEED = 20_26
TYPES = (
    "g4dn.xlarge",
    "g4dn.12xlarge",
    "g5.xlarge",
    "g5.12xlarge",
    "g5.48xlarge",
    "g6.xlarge",
    "g6.12xlarge",
    "g6.48xlarge",
    "g6e.xlarge",
    "g6e.12xlarge",
    "p3.8xlarge",
    "p4d.24xlarge",
)
PAPER = {"g5.12xlarge": 2, "g6.12xlarge": 3, "g6e.xlarge": 4}
PAPER_PRICES = {"g5.12xlarge": 2.29, "g6.12xlarge": 1.94, "g6e.xlarge": 0.70}


def cluster(
    counts: Mapping[str, int], prices: Mapping[str, float] | None = None
) -> tuple[CandidateNode, ...]:
    """Nodes by type, named by type and number."""
    catalogue = load_catalogue()
    return tuple(
        CandidateNode(
            f"{name}-{i}",
            described(catalogue, instance_type=name, price_per_hour=(prices or {}).get(name, 0.0)),
        )
        for name, count in counts.items()
        for i in range(count)
    )


def random_cluster(number: int, most_nodes: int = 8) -> tuple[CandidateNode, ...]:
    """Two to `most_nodes` instances of one to four types."""
    draw = random.Random(SEED * 1000 + number)
    types = draw.sample(TYPES, draw.randint(1, 4))
    counts: dict[str, int] = {}
    for _ in range(draw.randint(2, most_nodes)):
        name = draw.choice(types)
        counts[name] = counts.get(name, 0) + 1
    return cluster(counts)


def cluster_of_gpus(gpus: int, number: int) -> tuple[CandidateNode, ...]:
    """Instances of three to six types, together at least `gpus` GPUs and less than 8 more."""
    draw = random.Random(SEED * 2000 + number)
    types, catalogue = draw.sample(TYPES, draw.randint(3, 6)), load_catalogue()
    counts: dict[str, int] = {}
    have = 0
    while have < gpus:
        name = draw.choice(types)
        counts[name] = counts.get(name, 0) + 1
        have += catalogue.instance(name).gpu_count
    return cluster(counts)
