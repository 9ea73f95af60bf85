"""Timings of a reader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FollowerSettings:
    """Timings in seconds."""

    silence_s: float = 0.5
    """No frame for this long from a head that does not serve: leave it."""
    progress_s: float = 2.0
    """The same for steps."""
    reach_s: float = 6.0
    """No frame for this long from a head that serves: attach once more."""
    recover_s: float = 60.0
    """From the first sign of trouble to an explicit error."""
    resume_timeout_s: float = 10.0
    """Deadline of one question to the controller."""
    retry_s: float = 0.1
    """Pause before a failed question is asked again; doubles up to `max_retry_s`, and is up to
    twice as long, by generation: a crowd does not come back at once."""
    max_retry_s: float = 1.0
    glance_s: float = 0.5
    """Time counts as silence only as far as it was watched: between two ticks, up to this."""
