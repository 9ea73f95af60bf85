"""What every backend asks of blocks that go out of its cache or come in."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import FailedPrecondition, InvalidArgument
from services.engine.core.kv_layout import KvLayout


def check_blocks(blocks: Sequence[int], kv_blocks: int) -> None:
    """Raises InvalidArgument for one that the cache has not."""
    if blocks and not 0 <= min(blocks) <= max(blocks) < kv_blocks:
        raise InvalidArgument(f"block ids must be below {kv_blocks}", field="blocks")


def check_size(kv_blocks: int, wanted: int) -> None:
    """Raises FailedPrecondition for a cache that has another number of blocks, or is none."""
    if kv_blocks != wanted:
        raise FailedPrecondition(f"the cache has {kv_blocks} blocks, not {wanted}")


def check_sizes(
    layout: KvLayout,
    layers: range,
    blocks: Sequence[int],
    data: Sequence[bytes | memoryview],
) -> None:
    """Raises InvalidArgument where there are more blocks than bytes, or a block's are too few or
    too many."""
    if len(data) != len(blocks):
        raise InvalidArgument(f"bytes of {len(data)} blocks for {len(blocks)}", field="data")
    expected = layout.size_bytes(layers)
    for one in data:
        if len(one) != expected:
            raise InvalidArgument(f"{len(one)} bytes of a block, expected {expected}", field="data")
