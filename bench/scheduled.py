"""A formation in one process: the head's scheduler over stages that it calls itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from services.common.generation import GenerationRequest, finish_at
from services.engine.backend import Hidden, Sampled, StageBackend
from services.engine.core.actions import SequenceKey
from services.engine.core.scheduler import Scheduler, SchedulerSettings, Step


class Scheduled:
    """Runs requests to their ends, as a head does, and keeps what they said."""

    def __init__(
        self, stages: Sequence[StageBackend], settings: SchedulerSettings, kv_blocks: int
    ) -> None:
        self.scheduler = Scheduler(settings, kv_blocks, len(stages))
        self.outputs: dict[SequenceKey, list[int]] = {}
        self.steps: list[Step] = []
        self.accepted = 0
        self._stages = stages
        self._requests: dict[SequenceKey, GenerationRequest] = {}
        self.flights: deque[tuple[Step, tuple[Sampled, ...], float]] = deque()
        self._kv_blocks = kv_blocks
        self.begin()

    def begin(self) -> None:
        """Empties the stages, between requests, for others may have run on them meanwhile."""
        for stage in self._stages:
            stage.begin(self._kv_blocks)

    def start(self, request: GenerationRequest, held: Sequence[int] = ()) -> None:
        """All choices of a request, the first one behind what it has said already."""
        for choice in range(request.choices):
            key = SequenceKey(request.generation_id, 1, choice)
            output = list(held) if choice == 0 else []
            self._requests[key], self.outputs[key] = request, output
            self.scheduler.start(key, request, output)

    def depart(self) -> bool:
        """Computes the next step, if one may begin; it has yet to come back."""
        step = self.scheduler.next_step()
        if step is None:
            return False
        began_s = time.thread_time()
        rows: Sequence[int] | Hidden | tuple[Sampled, ...] = step.token_ids
        for stage in self._stages:
            rows = stage.forward(step.batch, rows)  # type: ignore[arg-type]
        assert isinstance(rows, tuple)
        self.flights.append((step, rows, time.thread_time() - began_s))
        self.steps.append(step)
        return True

    def arrive(self) -> bool:
        """Lets the oldest step come back, if there is one."""
        if not self.flights:
            return False
        step, sampled, took_s = self.flights.popleft()
        result = self.scheduler.complete(step.number, sampled, took_s)
        self.accepted += result.accepted
        for token in result.tokens:
            request, output = self._requests[token.key], self.outputs[token.key]
            ended = bool(output) and finish_at(request, len(output) - 1, output[-1]) is not None
            assert not ended, "a token behind the end"
            assert token.position == len(output)
            output.append(token.token_id)
            if finish_at(request, token.position, token.token_id) is not None:
                self.scheduler.stop(token.key)
        return True

    def finish(self) -> None:
        """Runs all that was started to its end."""
        while self.depart() or self.arrive():
            pass
