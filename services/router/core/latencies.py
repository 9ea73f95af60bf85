"""How long one reader waits, and what for: its first token, every next one, its end, and every move
to another head.

A move is told when the first token of the new head is here. It is made of the time to see that the
old head is of no use (from its last frame), the time until the controller names another one, and
the time that one takes to read again what there was and to sample what is next. The gap is what the
reader sees of all that: from token to token.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.exchange import LeaveReason

HANDED_OVER = "handed_over"
"""The old head sealed the generation and said where it stands: nothing was lost."""
CAUSES = (HANDED_OVER, *(reason.value for reason in LeaveReason))
"""Why a reader goes on elsewhere."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move to another head took, in seconds."""

    cause: str
    detection_s: float
    grant_s: float
    replay_s: float
    gap_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """What a frame with tokens comes to."""

    first_token_s: float | None = None
    """Since the request, where these are its first tokens."""
    between_s: float | None = None
    """From token to token since the last ones."""
    moved: Moved | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A generation ended well at a head that this reader read from."""

    whole_s: float | None
    """Since the request; None for a reader that came back."""
    per_token_s: float | None
    """Of each token behind the first; None where there is none, or it was not seen."""


@dataclass(slots=True)
class _Leaving:
    cause: str
    at_s: float
    detection_s: float
    granted_s: float | None = None


class Latencies:
    """Of one reader. One that came back sees neither the first token nor the whole."""

    def __init__(self) -> None:
        self._asked_s: float | None = None
        self._first_s: float | None = None
        self._frame_s: float | None = None
        """When the last frame came, if one did."""
        self._tokens_s: float | None = None
        """When the last tokens of a head came."""
        self._leaving: _Leaving | None = None

    def asked(self, now_s: float) -> None:
        """The request came in: the generation begins with this reader."""
        self._asked_s = now_s

    def waits_s(self, now_s: float) -> float:
        """How long the first token has been waited for; 0 once it is here."""
        return 0.0 if self._asked_s is None or self._first_s is not None else now_s - self._asked_s

    def left(self, reason: LeaveReason | None, now_s: float) -> None:
        """The controller is asked for another head; no reason: the last one handed over, or there
        was none. Only the first question behind a head's last frame counts."""
        if self._frame_s is None or self._leaving is not None:
            return
        cause = HANDED_OVER if reason is None else reason.value
        self._leaving = _Leaving(cause, now_s, now_s - self._frame_s)

    def granted(self, moved: bool, now_s: float) -> None:
        """The controller answered: another head, or that the last one is the one still."""
        if not moved:
            self._leaving = None
        elif self._leaving is not None:
            self._leaving.granted_s = now_s

    def frame(self, tokens: int, now_s: float) -> Heard | None:
        """A head sent a frame with so many new tokens of a choice, the choice that got most."""
        self._frame_s = now_s
        if not tokens:
            return None
        first_s = between_s = None
        if self._asked_s is not None and self._first_s is None:
            self._first_s = now_s
            first_s = now_s - self._asked_s
        if self._tokens_s is not None:
            between_s = (now_s - self._tokens_s) / tokens
        moved = self._moved(now_s)
        self._tokens_s = now_s
        return Heard(first_s, between_s, moved)

    def ended(self, tokens: int, now_s: float) -> Ended | None:
        """The generation ended well, with so many tokens of the longest choice; None where that is
        old news: its head told another reader."""
        if self._frame_s is None:
            return None
        whole_s = None if self._asked_s is None else now_s - self._asked_s
        rest_s = None
        if self._first_s is not None and tokens > 1:
            rest_s = (now_s - self._first_s) / (tokens - 1)
        return Ended(whole_s, rest_s)

    def _moved(self, now_s: float) -> Moved | None:
        leaving = self._leaving
        if leaving is None or leaving.granted_s is None:
            return None
        self._leaving = None
        since_s = leaving.at_s - leaving.detection_s if self._tokens_s is None else self._tokens_s
        return Moved(
            leaving.cause,
            leaving.detection_s,
            leaving.granted_s - leaving.at_s,
            now_s - leaving.granted_s,
            now_s - since_s,
        )
