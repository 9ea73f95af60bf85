"""What was measured on a mesh: requests, stages' steps by the window, events. Never any text.

A recording is JSON lines. The first is the header, each other one has `kind`: request, window or
event. Times are seconds since it began.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from services.common.errors import InvalidArgument, NotFound
from services.common.yaml_file import Row

MAX_FILE_BYTES = 1 << 30
Time = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 50)]
Id = Annotated[str, Field(max_length=256)]


class Stage(Row):
    """Who computes which layers, from `begin` to before `end`."""

    node: Id
    offer: Id
    begin: Count
    end: Count

    @property
    def kind(self) -> str:
        """Stages of one kind are taken to be equally fast."""
        return f"{self.offer or 'node'}:{self.begin}-{self.end}"


class Header(Row):
    """The first line."""

    kind: Literal["recording"] = "recording"
    version: Literal[1] = 1
    seconds: Time
    pipelines: dict[Id, tuple[Stage, ...]]
    """Those that served, head first."""


class RequestRow(Row):
    """One request, as its reader saw it."""

    kind: Literal["request"] = "request"
    number: Count
    arrival_s: Time
    prompt: Annotated[int, Field(ge=1, le=1 << 50)]
    """Tokens, as is `output`."""
    output: Count
    pipeline: Id
    """The first that it was seen at; empty where it was over too soon to be seen."""
    then: tuple[Id, ...] = Field(default=(), max_length=1000)
    """Where it was seen later on, in this order."""
    moves: Count
    outcome: Literal["finished", "failed", "running"]
    tokens: tuple[tuple[Time, Count], ...]
    """When its reader had how many, at each event."""

    @property
    def is_whole(self) -> bool:
        return self.outcome == "finished" and self.output > 0 and bool(self.tokens)

    @property
    def ttft_s(self) -> float:
        return self.tokens[0][0] - self.arrival_s

    @property
    def tpot_s(self) -> float:
        return (self.tokens[-1][0] - self.tokens[0][0]) / max(1, self.output - 1)

    @property
    def e2e_s(self) -> float:
        return self.tokens[-1][0] - self.arrival_s


class WindowRow(Row):
    """What one stage did in a window; steps and rows are those that its head counted."""

    kind: Literal["window"] = "window"
    begin_s: Time
    end_s: Time
    pipeline: Id
    stage: Count
    steps: Count
    decoded: Count
    """Sequences decoded, over all steps."""
    prompt_rows: Count
    """Rows of prompts, of sequences that came into the batch."""
    stepped_s: Time
    """Seconds that the stage's steps took."""
    computed_s: Time = 0.0
    """Of these, on a core; 0 where nobody told. The rest they waited for one."""


ENDS = frozenset({"pipeline_lost", "handover_finished"})
"""Events by which a pipeline's generations have left it; who was about to end ends before."""


class EventRow(Row):
    """Something that the controller logged."""

    kind: Literal["event"] = "event"
    at_s: Annotated[float, Field(allow_inf_nan=False)]
    event: Id
    node: Id
    pipeline: Id


Line = RequestRow | WindowRow | EventRow
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that was read."""

    header: Header
    requests: tuple[RequestRow, ...]
    """In the order of their arrival."""
    windows: tuple[WindowRow, ...]
    events: tuple[EventRow, ...]

    @classmethod
    def of(cls, header: Header, lines: list[Line]) -> Recording:
        requests = [one for one in lines if isinstance(one, RequestRow)]
        return cls(
            header,
            tuple(sorted(requests, key=lambda one: (one.arrival_s, one.number))),
            tuple(one for one in lines if isinstance(one, WindowRow)),
            tuple(one for one in lines if isinstance(one, EventRow)),
        )

    def text(self) -> str:
        """As a file holds it."""
        rows = (self.header, *self.requests, *self.windows, *self.events)
        return "".join(f"{row.model_dump_json()}\n" for row in rows)


def read_recording(path: Path) -> Recording:
    """Raises InvalidArgument, naming file, line and field, and NotFound."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidArgument(f"{path.name} is over {MAX_FILE_BYTES} bytes", field=path.name)
        texts = path.read_text().splitlines()
    except OSError as error:
        raise NotFound(f"cannot read {path.name}: {error.strerror}", field=path.name) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path.name} is not text", field=path.name) from error
    line = 1
    try:
        header = Header.model_validate_json(texts[0] if texts else "")
        lines = []
        for text in texts[1:]:
            line += 1
            lines.append(_LINE.validate_json(text))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "line"
        raise InvalidArgument(
            f"{path.name}:{line}: {place}: {fault['msg']}", field=place
        ) from error
    return Recording.of(header, lines)
