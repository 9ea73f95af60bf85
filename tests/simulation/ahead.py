"""Schedules in which blocks travel, and go ahead of what is handed over while it is served.

`python ahead.py FIRST COUNT PATIENCE` as schedules.py.
"""

from __future__ import annotations

from schedules import Schedule, table
from seeds import program


class CopyingSchedule(Schedule):
    """The same faults; what is fetched comes late, in part or not at all."""

    ahead_s = 1.0


if __name__ == "__main__":
    program(CopyingSchedule, lambda schedule: schedule.hits, table)
