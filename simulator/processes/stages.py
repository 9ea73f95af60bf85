"""A model of a formation's stages: rows in KV blocks, and a token drawn from what they hold."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from services.common.errors import InvalidArgument
from services.common.generation import Sampling
from services.common.nodes import Member
from services.engine.backend import BLOCK_SIZE, Sampled, SequenceOpen, SequenceStep, StageFacts
from services.engine.core.actions import SequenceKey
from services.engine.core.blocks import blocks_for
from services.engine.core.scheduler import Step
from services.model.vocabulary import Vocabulary

LAYER_COUNT = 30
VOCAB_SIZE = 1000
VOCABULARY = Vocabulary(
    shown=tuple(f" {token}".encode() for token in range(VOCAB_SIZE)),
    labels=tuple(f" {token}".encode() for token in range(VOCAB_SIZE)),
)
ID_BYTES = 4
BLOCK_BYTES = BLOCK_SIZE * ID_BYTES
DIGEST_BYTES = 4
ROUNDED = 0x5A5A5A5A
"""What the digest of a block differs by that was rounded."""
Found = Callable[[SequenceKey, int, Sequence[bytes]], None]
"""A sequence goes on behind blocks that it did not compute: its first such block, and what each of
them holds."""


def token_of(sampling: Sampling, choice: int, ids: bytes, salt: str) -> int:
    """A token that depends on every id before it, the prompt's too; a `salt` makes stages
    inexact. By some seeds a text mostly says again what it said behind the same two ids."""
    state = zlib.crc32(ids, zlib.crc32(f"{sampling.seed} {choice} {salt}".encode()))
    eos = sampling.eos_token_ids
    if state % 61 == 0:
        return eos[0]
    if sampling.seed % 3 == 1 and state % 7:
        return 100 + zlib.crc32(ids[-2 * ID_BYTES :]) % 8
    return 100 + state % 50


def bytes_of(ids: Iterable[int]) -> bytes:
    """As a cache holds them."""
    return array("I", ids).tobytes()


def contents_of(ids: Sequence[int], first: int = 0) -> list[bytes]:
    """What these ids' full blocks hold, from one of them on: their own ids, and a digest of all
    that their rows were computed from."""
    held, digest = bytes_of(ids), 0
    whole = [held[at : at + BLOCK_BYTES] for at in range(0, len(held), BLOCK_BYTES)]
    contents = []
    for block in whole[: len(ids) // BLOCK_SIZE]:
        digest = zlib.crc32(block, digest)
        contents.append(block + digest.to_bytes(DIGEST_BYTES, "little"))
    return contents[first:]


def rounded_block(held: bytes) -> bytes:
    """A block as it comes where it is rounded on its way: of the same ids, and another one."""
    digest = int.from_bytes(held[BLOCK_BYTES:], "little") ^ ROUNDED
    return held[:BLOCK_BYTES] + digest.to_bytes(DIGEST_BYTES, "little")


def facts_of(member: Member, numerics_class: str) -> StageFacts:
    """Of a stage of the one model there is."""
    return StageFacts(
        layers=range(member.layers.start, member.layers.end),
        layer_count=LAYER_COUNT,
        row_width=1024,
        vocab_size=VOCAB_SIZE,
        context_length=4096,
        hidden_dtype="bf16",
        numerics_class=numerics_class,
        exact=True,
    )


@dataclass(slots=True)
class _Slot:
    opened: SequenceOpen
    computed: int = 0


def _shared(slot: _Slot, entry: SequenceStep) -> bool:
    """The sequence goes on behind whole blocks that others have computed."""
    return entry.start > slot.computed and entry.start % BLOCK_SIZE == 0


class SimulatedStages:
    """All stages of a formation, for their caches hold the same. An id is written where its block
    table says and read from there again: a block that two sequences hold changes a text, as it
    would in an engine. With its ids a block holds a digest of what was written before them in the
    sequence, wherever its table says that this is: as keys and values, it is another one behind
    another beginning. Where a sequence may have rounded blocks its tokens follow from digests, too,
    as soon as one is not what its ids have."""

    def __init__(self, kv_blocks: int, salt: str) -> None:
        self.kv_blocks = kv_blocks
        self._cache = bytearray(kv_blocks * BLOCK_BYTES)
        self._rows = memoryview(self._cache).cast("I")
        self._digests = array("I", bytes(kv_blocks * DIGEST_BYTES))
        self._slots: dict[int, _Slot] = {}
        self._salt = salt

    def begin_again(self) -> None:
        """For another formation: blocks hold what they held."""
        self._slots.clear()

    def forward(self, step: Step, found: Found) -> list[Sampled]:
        """Raises InvalidArgument for a batch that no stage could run."""
        for closed in step.batch.closes:
            if self._slots.pop(closed, None) is None:
                raise InvalidArgument(f"slot {closed} is not open", field="closes")
        for opened in step.batch.opens:
            if opened.slot in self._slots:
                raise InvalidArgument(f"slot {opened.slot} is open", field="opens")
            self._slots[opened.slot] = _Slot(opened)
        sampled, first = [], 0
        for key, entry in zip(step.keys, step.batch.steps, strict=True):
            slot = self._slots.get(entry.slot)
            end = entry.start + entry.count
            if slot is None or (slot.computed != entry.start and not _shared(slot, entry)):
                raise InvalidArgument(f"slot {entry.slot} has no {entry.start} rows", field="steps")
            if len(entry.block_table) * BLOCK_SIZE < end:
                raise InvalidArgument(f"no blocks for {end} rows", field="steps")
            if entry.start > slot.computed:
                behind, table = slot.computed // BLOCK_SIZE, entry.block_table
                others = table[behind : entry.start // BLOCK_SIZE]
                found(key, behind, [self.block(block) for block in others])
            self._write(entry, step.token_ids[first : first + entry.count])
            first += entry.count
            slot.computed = end
            if not entry.sample:
                continue
            opened, salt = slot.opened, self._salt and f"{key.epoch} {self._salt}"
            if opened.sampling.kv_int8:
                salt += self._rounding(entry)
            known = end - len(entry.drafts)
            for behind, draft in enumerate((*entry.drafts, None), known):
                token = token_of(opened.sampling, opened.choice, self._read(entry, behind), salt)
                sampled.append(Sampled(entry.slot, behind - len(opened.prompt_ids), token))
                slot.computed = behind
                if token != draft:
                    break
        return sampled

    def block(self, index: int) -> bytes:
        """What it holds."""
        ids = self._cache[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        return bytes(ids) + self._digests[index].to_bytes(DIGEST_BYTES, "little")

    def fill(self, index: int, data: bytes) -> None:
        """It holds what others have computed."""
        self._cache[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] = data[:BLOCK_BYTES]
        self._digests[index] = int.from_bytes(data[BLOCK_BYTES:], "little")

    def _write(self, entry: SequenceStep, ids: tuple[int, ...]) -> None:
        rows, table = self._rows, entry.block_table
        for position, token in enumerate(ids, entry.start):
            block, row = divmod(position, BLOCK_SIZE)
            rows[table[block] * BLOCK_SIZE + row] = token
        end = entry.start + entry.count
        for index in range(entry.start // BLOCK_SIZE, blocks_for(end)):
            start = table[index] * BLOCK_BYTES
            written = min(BLOCK_SIZE, end - index * BLOCK_SIZE) * ID_BYTES
            before = self._digests[table[index - 1]] if index else 0
            self._digests[table[index]] = zlib.crc32(self._cache[start : start + written], before)

    def _rounding(self, entry: SequenceStep) -> str:
        """Of the full blocks before an entry; empty where they are what its ids have."""
        table, whole = entry.block_table, 0
        table = table[: entry.start // BLOCK_SIZE]
        digests = [self._digests[block] for block in table]
        for block, digest in zip(table, digests, strict=True):
            start = block * BLOCK_BYTES
            whole = zlib.crc32(self._cache[start : start + BLOCK_BYTES], whole)
            if digest != whole:
                return f" {digests}"
        return ""

    def _read(self, entry: SequenceStep, end: int) -> bytes:
        starts = [block * BLOCK_BYTES for block in entry.block_table]
        whole = b"".join([self._cache[start : start + BLOCK_BYTES] for start in starts])
        return whole[: end * ID_BYTES]
