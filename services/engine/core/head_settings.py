"""Limits and timings of a head's core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """Limits and timings of the head core, in seconds."""

    frame_interval_s: float = 0.25
    """A reader whose generation runs gets a frame at least this often."""
    queued_frame_interval_s: float = 2.0
    """The same while it is queued: of a crowd, most are."""
    checkpoint_interval_s: float = 0.05
    """Checkpoints of a generation are coalesced over at most this long."""
    checkpoint_timeout_s: float = 1.0
    """A checkpoint unanswered for this long is sent again."""
    yield_s: float = 0.25
    """A generation unread for this long gives its place to those that are read; a reader that only
    attaches anew is back by then."""
    detach_s: float = 10.0
    """A generation unread for this long is parked."""
    drain_readers_s: float = 1.0
    """A drain waits this long for readers to take what is theirs."""
    keep_s: float = 60.0
    """An ended generation, or the memory that it was sealed or cancelled, is kept this long."""
    max_generations: int = 1024
    """Open generations; one more parks an unread one, else it is refused with
    ResourceExhausted."""
    max_unjournaled: int = 4096
    """The same for those, ended or not, of which the journal has yet to answer for something: they
    pile up while the controller is away."""
    max_remembered: int = 65_536
    """Generations that are gone, and cancelled ones, whose memory is kept; the newest."""
    checkpoints_at_once: int = 256
    checkpoint_bytes_at_once: int = 4 << 20
    """What one message to the journal may carry, a request that begins there and an id apart."""
    frame_bytes: int = 1 << 20
    """What one frame to a reader may carry, an id apart."""
