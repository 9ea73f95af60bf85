"""The start of the process as a trace: since it was made, its imports, until it has registered."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from opentelemetry.trace import set_span_in_context

from services.common import telemetry


class StartTrace:
    """Begun once the imports are done."""

    def __init__(self) -> None:
        made_ns = made_unix_ns()
        self._span = telemetry.tracer.start_span("engine.start", start_time=made_ns)
        within = set_span_in_context(self._span)
        telemetry.tracer.start_span("engine.imports", within, start_time=made_ns).end()
        self._registered = False

    def registered(self) -> None:
        """The controller knows the process; told again, it is known already."""
        if not self._registered:
            self._registered = True
            self._span.end()


def made_unix_ns() -> int:
    """When the system made this process, in nanoseconds since 1970 to a hundredth of a second; now,
    where it does not tell (proc(5), field 22 of stat)."""
    with suppress(OSError):
        behind_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        made_s = int(behind_name[19]) / os.sysconf("SC_CLK_TCK")
        lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - made_s
        return time.time_ns() - round(lived_s * 1e9)
    return time.time_ns()
