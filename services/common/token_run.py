"""One choice's token ids from position 0: the one class that head buffer, journal and readers hold.

Invariant: what is held never changes, it only grows; whoever says otherwise gets Diverged.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.errors import Diverged, InvalidArgument
from services.common.generation import FinishReason, TokenLogprob, TokenSpan

_EVENT_ID = re.compile(r"(\d{1,9}(?:,\d{1,9}){0,255})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: ids added (0 for a duplicate), the length held now, whether a gap was
    found, in which case nothing was added and the sender goes on from `length`."""

    added: int
    length: int
    gap: bool = False


class TokenRun:
    """Ids, logprobs when asked for, and a checksum of every prefix."""

    __slots__ = ("_checksums", "_ids", "_logprobs", "cached_tokens")

    def __init__(self, ids: Sequence[int] = (), logprobs: Sequence[TokenLogprob] = ()) -> None:
        self.cached_tokens = 0
        """Prompt tokens that were not computed for it; known with its first id."""
        self._ids = array("I")
        self._logprobs: list[TokenLogprob] = []
        self._checksums = array("I", [0])
        self.append(0, ids, logprobs)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[int]:
        """All ids; a view that grows with the run."""
        return self._ids

    def check(self, start: int, ids: Sequence[int]) -> bool:
        """Compares without adding; True when an append would not leave a gap.

        Raises Diverged at the first position that holds another id.
        """
        held = self._ids
        for position in range(start, min(start + len(ids), len(held))):
            if held[position] != ids[position - start]:
                raise Diverged(position, held[position], ids[position - start])
        return start <= len(held)

    def append(
        self,
        start: int,
        ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
        cached_tokens: int = 0,
    ) -> Appended:
        """Below the length compares, at the length appends, above it answers the length held.

        `logprobs` is empty or has one entry an id; `cached_tokens` counts with the first id. Raises
        Diverged before anything is added, InvalidArgument for what is no id.
        """
        if logprobs and len(logprobs) != len(ids):
            raise InvalidArgument(f"{len(logprobs)} logprobs for {len(ids)} ids", field="logprobs")
        try:
            new = array("I", ids)
        except OverflowError:
            raise InvalidArgument("an id lies in [0, 2**32)", field="ids") from None
        length = len(self._ids)
        if start != length:
            if start < 0:
                raise InvalidArgument("a position is not negative", field="ids")
            if not self.check(start, ids):
                return Appended(0, length, gap=True)
            new, logprobs = new[length - start :], logprobs[length - start :]
        if new and not length:
            self.cached_tokens = cached_tokens
        self._ids.extend(new)
        self._logprobs.extend(logprobs)
        checksum = self._checksums[-1]
        for token in new:
            checksum = zlib.crc32(token.to_bytes(4, "little"), checksum)
            self._checksums.append(checksum)
        return Appended(len(new), len(self._ids))

    def checksum(self, length: int | None = None) -> int:
        """CRC-32 of the first `length` ids as little-endian 32-bit words."""
        return self._checksums[len(self) if length is None else length]

    def span(
        self,
        choice: int,
        start: int = 0,
        end: int | None = None,
        finish_reason: FinishReason | None = None,
    ) -> TokenSpan:
        """Positions [start, end) as a message."""
        return TokenSpan(
            choice,
            start,
            tuple(self._ids[start:end]),
            tuple(self._logprobs[start:end]),
            finish_reason,
            0 if start else self.cached_tokens,
        )


def event_id(runs: Sequence[TokenRun], lengths: Sequence[int]) -> str:
    """Names the point of a stream where `lengths[i]` ids of choice i are known: k[,k…]-checksum."""
    return f"{','.join(map(str, lengths))}-{_combined(runs, lengths):08x}"


def parse_event_id(text: str) -> tuple[tuple[int, ...], int]:
    """Lengths by choice and the checksum. Raises InvalidArgument."""
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            f"an event id reads k[,k…]-checksum, not {text[:40]!r}", field="last_event_id"
        )
    return tuple(int(part) for part in match[1].split(",")), int(match[2], 16)


def matches_event_id(runs: Sequence[TokenRun], lengths: Sequence[int], checksum: int) -> bool:
    """The ids held up to `lengths`, all of which must be held, are those the event id names."""
    return len(runs) == len(lengths) and _combined(runs, lengths) == checksum


def _combined(runs: Iterable[TokenRun], lengths: Iterable[int]) -> int:
    combined = 0
    for run, length in zip(runs, lengths, strict=True):
        combined = zlib.crc32(run.checksum(length).to_bytes(4, "little"), combined)
    return combined
