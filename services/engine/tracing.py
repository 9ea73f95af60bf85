"""Spans of a few steps: the first prompt chunk and the first decode of each traced generation.

So one request is one trace through every stage, without a span a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.trace import Span, use_span

from services.common import telemetry
from services.engine.core.scheduler import Step

FOLLOWED_LIMIT = 4096


@dataclass(slots=True, eq=False)
class Followed:
    """What one reader wants traced of its generation."""

    traceparent: str
    prefill: bool = True
    decode: bool = True


class StepTraces:
    """Which steps get spans, and the spans of those in flight."""

    def __init__(self) -> None:
        self._followed: dict[str, Followed] = {}
        self._spans: dict[int, list[Span]] = {}

    def follow(self, generation_id: str) -> Followed | None:
        """Traces a generation's next steps under the current span, if there is one."""
        traceparent = telemetry.traceparent()
        if not traceparent or len(self._followed) >= FOLLOWED_LIMIT:
            return None
        followed = self._followed[generation_id] = Followed(traceparent)
        return followed

    def forget(self, generation_id: str, followed: Followed | None) -> None:
        """Ends what `follow` began, but not what a later reader of the generation did."""
        if followed is not None and self._followed.get(generation_id) is followed:
            del self._followed[generation_id]

    def departed(self, step: Step) -> tuple[str, ...]:
        """Begins the spans of a step; returns their trace contexts."""
        if not self._followed:
            return ()
        spans: list[Span] = []
        for index, key in enumerate(step.keys):
            followed = self._followed.get(key.generation_id)
            if followed is None:
                continue
            decode = index < step.decodes
            if not (followed.decode if decode else followed.prefill):
                continue
            if decode:
                del self._followed[key.generation_id]
            followed.prefill = False
            spans.append(self._begin(followed.traceparent, step, decode))
        self._spans[step.number] = spans
        return tuple(_traceparent_of(span) for span in spans)

    def came_back(self, step: int) -> None:
        for span in self._spans.pop(step, ()):
            span.end()

    def drop(self) -> None:
        """The formation is gone."""
        for step in list(self._spans):
            self.came_back(step)
        self._followed.clear()

    @staticmethod
    def _begin(traceparent: str, step: Step, decode: bool) -> Span:
        return telemetry.tracer.start_span(
            "engine.step",
            context=telemetry.parent_of(traceparent),
            attributes={
                "shunt.step": step.number,
                "shunt.phase": "decode" if decode else "prefill",
                "shunt.rows": len(step.token_ids),
                "shunt.sequences": len(step.keys),
            },
        )


def _traceparent_of(span: Span) -> str:
    with use_span(span):
        return telemetry.traceparent()
