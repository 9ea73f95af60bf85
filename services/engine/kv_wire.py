"""Blocks on their way, as messages and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common import wire
from services.common.errors import InvalidArgument
from services.engine.core.copying import Heir
from services.engine.core.incoming import NamedBlock
from services.engine.core.kv_layout import ELEMENTS, Element, KvLayout, KvPiece
from services.engine.kv_exchange import MAX_NAMES
from services.engine.kv_gatherer import Wanted

LONGEST_S = wire.LONGEST_FETCH_S
"""Of a fetch, of copying ahead, or of keeping what is fetched."""


def blocks_to(blocks: Iterable[NamedBlock]) -> list[engine_pb2.KvBlock]:
    return [engine_pb2.KvBlock(name=name, block=block) for name, block in blocks]


def blocks_from(messages: Iterable[engine_pb2.KvBlock]) -> tuple[NamedBlock, ...]:
    """Raises InvalidArgument where one is named twice, or is to hold two."""
    blocks = tuple((message.name, message.block) for message in messages)
    if len(dict(blocks)) < len(blocks) or len({block for _, block in blocks}) < len(blocks):
        raise InvalidArgument("each block has one name", field="blocks")
    return blocks


def read_to(wanted: Wanted) -> engine_pb2.ReadKvRequest:
    return engine_pb2.ReadKvRequest(
        formation_id=wanted.formation_id,
        layout=wanted.layout_name,
        layers=layers_to(wanted.layers),
        names=wanted.names,
        wait_s=wanted.wait_s,
    )


def read_from(message: engine_pb2.ReadKvRequest) -> Wanted:
    """Raises InvalidArgument and names the field."""
    names: Sequence[bytes] = tuple(message.names)
    layers = layers_from(message.layers)
    return Wanted(message.formation_id, message.layout, layers, names, max(0.0, message.wait_s))


def piece_to(piece: KvPiece | None) -> engine_pb2.ReadKvResponse:
    """None: there is none yet."""
    if piece is None:
        return engine_pb2.ReadKvResponse()
    return engine_pb2.ReadKvResponse(
        name=piece.name,
        layers=layers_to(piece.layers),
        data=bytes(piece.data),
        checksum=piece.checksum,
    )


def piece_from(message: engine_pb2.ReadKvResponse) -> KvPiece | None:
    """Raises InvalidArgument for layers that are none."""
    if not message.name:
        return None
    layers = layers_from(message.layers)
    return KvPiece(message.name, layers, message.data, message.checksum)


def limit_from(limit_s: float, field: str = "limit_s") -> float:
    """Raises InvalidArgument for what is no time, or too much of it."""
    if not 0 <= limit_s <= LONGEST_S:
        raise InvalidArgument(f"within 0 and {LONGEST_S:g} seconds", field=field)
    return limit_s


def heirs_from(messages: Iterable[engine_pb2.KvHeir]) -> tuple[Heir, ...]:
    """Raises InvalidArgument and names the field."""
    messages = tuple(messages)
    if not all(message.members for message in messages):
        raise InvalidArgument("an heir is somebody", field="heirs.members")
    return tuple(
        Heir(
            tuple(map(wire.kv_member_from, message.members)),
            frozenset(message.generation_ids),
            message.formation_id,
        )
        for message in messages
    )


def chains_from(messages: Iterable[engine_pb2.KvChain]) -> tuple[tuple[bytes, ...], ...]:
    """Raises InvalidArgument for too many blocks, and where one is twice in a chain."""
    chains = tuple(tuple(message.names) for message in messages)
    if sum(map(len, chains)) > MAX_NAMES:
        raise InvalidArgument(f"at most {MAX_NAMES} blocks", field="chains")
    if any(len(set(chain)) < len(chain) for chain in chains):
        raise InvalidArgument("a block is twice in a chain", field="chains")
    return chains


def laid_from(message: engine_pb2.StoreKvRequest) -> tuple[NamedBlock, ...]:
    """Where what is to be kept is to lie, too. Raises InvalidArgument where that is said of some
    alone, of one twice, or of two in one place."""
    if message.blocks and len(message.blocks) != len(message.names):
        raise InvalidArgument("every block has a place, or none has", field="blocks")
    if len(set(message.blocks)) < len(message.blocks):
        raise InvalidArgument("each place has one block", field="blocks")
    return tuple(zip(message.names, message.blocks, strict=False))


def layout_to(layout: KvLayout) -> engine_pb2.KvLayout:
    return engine_pb2.KvLayout(
        form=layout.form,
        heads=layout.heads,
        head_bytes=layout.head_bytes,
        positions=layout.positions,
        numerics_class=layout.numerics_class,
        element=layout.element,
    )


def layout_from(message: engine_pb2.KvLayout) -> KvLayout:
    return KvLayout(
        message.form,
        message.heads,
        message.head_bytes,
        message.positions,
        message.numerics_class,
        element_from(message.element),
    )


def element_from(name: str) -> Element:
    """One that nobody knows here is none: such blocks go as they are."""
    return next((known for known in ELEMENTS if known == name), "")


def layers_from(message: common_pb2.LayerRange) -> range:
    """Raises InvalidArgument for layers that are none."""
    layers = wire.layers_from(message)
    return range(layers.start, layers.end)


def layers_to(layers: range) -> common_pb2.LayerRange:
    return common_pb2.LayerRange(start=layers.start, end=layers.stop)
