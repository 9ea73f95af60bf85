"""Events of a mesh's log as lines: JSON for scripts, words for people."""

from __future__ import annotations

import json
from datetime import datetime

from rich.text import Text
from shuntserve.controller.v1 import controller_pb2

Event = controller_pb2.WatchEventsResponse
_BAD = ("_failed", "_lost", "_dropped", "_differ")
_KIND_CHARS = 20


def json_line(event: Event) -> str:
    """One object; `at` is in seconds since 1970."""
    return json.dumps(
        {
            "n": event.number,
            "at": round(event.time_unix_s, 3),
            "kind": event.kind,
            "node": event.node_id or None,
            "pipeline": event.pipeline_id or None,
            "generation": event.generation_id or None,
            "plan": event.plan,
            "attributes": dict(sorted(event.attributes.items())),
        }
    )


def text_line(event: Event) -> Text:
    """Number, local time, plan, kind, what it is about, and more by name."""
    at = datetime.fromtimestamp(event.time_unix_s).strftime("%H:%M:%S.%f")[:-3]
    plan = f"plan {event.plan}" if event.plan else "no plan"
    about = (event.node_id, event.pipeline_id, event.generation_id)
    more = [f"{name}={value}" for name, value in sorted(event.attributes.items())]
    colour = "red" if event.kind.endswith(_BAD) else "bold"
    return Text.assemble(
        (f"{event.number:>6} {at} ", "dim"),
        f"{plan:<8} ",
        (f"{event.kind:<{_KIND_CHARS}}", colour),
        " ".join(["", *filter(None, about), *more]),
    )
