"""The life of every generation at a head: queued, running, sealing, sealed, finished, cancelled.

Methods take the time and return actions. Frames and checkpoints are pulled (`next_frame`,
`take_checkpoints`), so a slow reader or a controller that is away costs no memory: what they have
not had lies in the token runs anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.exchange import Checkpoint, CheckpointResult, Frame, GenerateCall, Phase
from services.common.generation import CancelReason
from services.engine.actions import Action, NewToken, SequenceKey


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """Limits and timings of the head core, in seconds."""

    frame_interval_s: float = 0.1
    """A reader gets a frame at least this often."""
    checkpoint_interval_s: float = 0.05
    """Checkpoints of a generation are coalesced over at most this long."""
    checkpoint_timeout_s: float = 1.0
    """A checkpoint unanswered for this long is sent again."""
    detach_s: float = 10.0
    """A generation unread for this long is parked."""
    keep_s: float = 60.0
    """An ended generation, or the memory that it was sealed or cancelled, is kept this long."""
    max_generations: int = 1024
    """Open generations; more are refused with ResourceExhausted."""


class Generations:
    """All generations whose head this process is."""

    def __init__(self, incarnation: str, settings: HeadSettings) -> None: ...

    def form(self, formation_id: str, numerics_class: str, now_s: float) -> list[Action]:
        """This process heads a formation from now on (dissolves the one before)."""
        raise NotImplementedError

    def dissolve(self, formation_id: str, now_s: float) -> list[Action]:
        """The formation is gone: seals what is known, closes readers with `dissolved`."""
        raise NotImplementedError

    def drain(self, formation_id: str, now_s: float) -> list[Action]:
        """Seals every generation behind its last step in flight; readers get `moved`. New calls
        are refused. Poll `drained` for the end. Raises FailedPrecondition for another formation."""
        raise NotImplementedError

    def drained(self, formation_id: str) -> int | None:
        """How many generations were sealed, once every seal is answered by the journal."""
        raise NotImplementedError

    def generate(self, reader_id: int, call: GenerateCall, now_s: float) -> list[Action]:
        """Runs a generation, or attaches this reader to it at its epoch (ending the one before).

        Raises FailedPrecondition (other formation, draining), StaleEpoch, Cancelled, Diverged,
        AlreadyExists (the id names another request), InvalidArgument, ResourceExhausted.
        """
        raise NotImplementedError

    def detach(self, reader_id: int, now_s: float) -> None:
        """The reader's stream is gone, however it ended; any id may be given, any number of
        times."""
        raise NotImplementedError

    def next_frame(self, reader_id: int, now_s: float) -> Frame | None:
        """The next frame to send, a Progress when nothing else was due for `frame_interval_s`,
        else None. A Closed is the last: end the stream behind it. Call it on every Wake and at
        least every `frame_interval_s / 2`."""
        raise NotImplementedError

    def cancel(
        self, generation_id: str, choice: int | None, reason: CancelReason, now_s: float
    ) -> list[Action]:
        """Ends a generation or one choice; known or not, the answer is the same."""
        raise NotImplementedError

    def sequence_phase(self, key: SequenceKey, phase: Phase) -> None:
        """The scheduler moved a sequence; it starts as QUEUED."""
        raise NotImplementedError

    def stepped(self, step: int, tokens: Sequence[NewToken], now_s: float) -> list[Action]:
        """A step came back, perhaps without tokens. Tokens of unknown keys count for nothing."""
        raise NotImplementedError

    def sequence_stopped(self, key: SequenceKey, now_s: float) -> list[Action]:
        """No step with this sequence is in flight any more; answers StopSequence."""
        raise NotImplementedError

    def take_checkpoints(self, now_s: float) -> tuple[Checkpoint, ...]:
        """Checkpoints to send now, at most one unanswered a generation; call it on
        WakeCheckpoints and every `checkpoint_interval_s` while the stream to the journal stands."""
        raise NotImplementedError

    def checkpoint_results(self, results: Iterable[CheckpointResult], now_s: float) -> list[Action]:
        """The journal's answers. A refusal fences: the generation stops here."""
        raise NotImplementedError

    def checkpoint_stream_opened(self, now_s: float) -> list[Action]:
        """A new stream to the journal stands: everything unanswered is sent again."""
        raise NotImplementedError

    def tick(self, now_s: float) -> list[Action]:
        """Parks what nobody reads, forgets what has ended; call it every 0.1 s or so."""
        raise NotImplementedError

    @property
    def load(self) -> int:
        """Generations queued or running."""
        raise NotImplementedError
