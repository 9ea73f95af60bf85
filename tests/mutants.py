"""Random damage to bytes, for the fuzzers of files that come from outside."""

from __future__ import annotations

import json
import random
from typing import Any

_NUMBERS = (-1, 0, 1, 2**31, 2**63, 2**64, 10**30, 1.5, True, float("inf"))
_OTHERS: tuple[Any, ...] = (
    None,
    "",
    "../../etc/passwd",
    "a\0b",
    "\ud800",
    [],
    {},
    [[[]]],
    "x" * 999,
)


def mutate_bytes(data: bytes, source: random.Random) -> bytes:
    """One to four of: a flipped bit, a cut, a doubled or foreign piece."""
    found = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(found) + 1)
        match source.randrange(5):
            case 0 if found:
                found[at % len(found)] ^= 1 << source.randrange(8)
            case 1:
                del found[at : at + source.randint(1, 64)]
            case 2:
                found[at:at] = source.randbytes(source.randint(1, 16))
            case 3:
                found[at:at] = found[at : at + source.randint(1, 64)]
            case _:
                found = found[:at] if source.random() < 0.2 else found
    return bytes(found)


def mutate_json(document: Any, source: random.Random) -> Any:
    """The document with one value, somewhere, replaced, removed, doubled or moved."""
    copy = json.loads(json.dumps(document))
    node, parent, key = copy, None, None
    while isinstance(node, dict | list) and node and source.random() < 0.85:
        parent = node
        key = source.choice(list(node)) if isinstance(node, dict) else source.randrange(len(node))
        node = node[key]
    if parent is None:
        return source.choice([*_OTHERS, *_NUMBERS])
    match source.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent.append(node)
        case 1:
            parent[str(key) + "x"] = node
        case 2 if isinstance(node, int):
            parent[key] = node + source.choice((-64, -1, 1, 64, 2**40))
        case 3:
            parent[key] = source.choice(_OTHERS)
        case 4 if isinstance(parent, list):
            source.shuffle(parent)
        case _:
            parent[key] = source.choice(_NUMBERS)
    return copy
