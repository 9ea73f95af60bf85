"""Random damage to bytes, for the fuzzers of files that come from outside."""

from __future__ import annotations

import json
import random
from pathlib import Path
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


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file, read-only or not."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


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


def mutate_gguf(data: bytes, source: random.Random) -> bytes:
    """Damage that leaves the size as it is, so that more than the header's end is reached: bytes
    overwritten, or a word of the metadata changed for another of its length."""
    found = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(found) if source.random() < 0.2 else len(found) // 4)
        match source.randrange(4):
            case 0:
                found[at] ^= 1 << source.randrange(8)
            case 1:
                found[at] = source.choice((0, 1, 3, 8, 9, 0x7F, 0x80, 0xFF))
            case 2:
                start = source.randrange(len(found))
                piece = found[start : start + source.randint(1, 16)]
                found[at : at + len(piece)] = piece[: len(found) - at]
            case _:
                at = data.find(source.choice((b".ggml.", b"llama.", b"blk.", b".weight")), at)
                if at >= 0:
                    found[at + source.randrange(6)] ^= 1
    return bytes(found)


def mutate_json(document: Any, source: random.Random) -> Any:
    """The document with one value, somewhere, replaced, removed, doubled or moved."""
    copy = json.loads(json.dumps(document))
    node: Any = copy
    parent: Any = None
    key: Any = None
    while isinstance(node, dict | list) and node and source.random() < 0.85:
        parent = node
        key = source.choice(list(node)) if isinstance(node, dict) else source.randrange(len(node))
        node = node[key]
    if parent is None:
        return source.choice([*_OTHERS, *_NUMBERS])
    _damage(parent, key, node, source)
    return copy


def _damage(parent: Any, key: Any, node: Any, source: random.Random) -> None:
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
