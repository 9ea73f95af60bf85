"""What a full KV block holds, by name: a chain of hashes over the ids up to the block's end.

A block's keys and values follow from the model, the class of arithmetic and every id up to its
last. The class is the formation's, in whose memory the block is; the rest goes into the hash. Heads
and routers name blocks by this one function, so a router knows which head has a prompt's beginning.

Blocks of a generation that lets them be rounded on their way are its own: the hash is over its id,
too, and behind the hash the name says whose they are. No other generation finds one of them, and
whoever has a name alone knows that its block may be rounded.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from services.common.generation import GenerationRequest

_HASH_BYTES = 32
"""Nobody finds two texts of one hash: who did would read one with the other's keys and values."""
_OWNER_BYTES = 8
_TOLD_BYTES = 8


def root_of(request: GenerationRequest) -> bytes:
    """Where the chain of a request's sequences begins: another model, or another salt, shares
    nothing, nor does what may be rounded with anything."""
    digest = request.model.digest.encode()
    length = len(digest).to_bytes(4, "little")  # so that no salt looks like a digest's end
    salted = length + digest + request.cache_salt.encode()
    owner = b""
    if request.sampling.kv_int8:
        owner = blake2b(request.generation_id.encode(), digest_size=_OWNER_BYTES).digest()
    return blake2b(salted, digest_size=_HASH_BYTES, key=owner).digest() + owner


def next_hash(parent: bytes, ids: Sequence[int]) -> bytes:
    """Of the block of these ids behind the one of this hash, or behind the root."""
    digest = blake2b(parent + array("I", ids).tobytes(), digest_size=_HASH_BYTES).digest()
    return digest + owner_of(parent)


def owner_of(name: bytes) -> bytes:
    """The generation, as a digest of its id, whose own a block of this name is: it may be rounded;
    empty for what is shared, which is never."""
    return name[_HASH_BYTES:]


def chain_of(request: GenerationRequest, block_positions: int) -> Iterator[bytes]:
    """The hashes of a prompt's full blocks, each computed when it is asked for."""
    ids, parent = request.prompt_ids, root_of(request)
    for start in range(0, len(ids) - block_positions + 1, block_positions):
        parent = next_hash(parent, ids[start : start + block_positions])
        yield parent


def told(block_hash: bytes) -> int:
    """A hash as heads tell it to routers, in 64 bits: that two look the same costs a hope."""
    return int.from_bytes(block_hash[:_TOLD_BYTES], "little")
