"""Which head a generation is granted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from services.common.exchange import ResumeQuestion
from services.common.generation import GenerationRequest, ModelRef
from services.common.phases import PipelinePhase
from services.controller.core.ledger.outcomes import Coming, ServingHead


class Complaints:
    """Formations that readers left because they do not serve."""

    def __init__(self, patience_s: float, kept_s: float) -> None:
        """A formation that was left is suspected for `patience_s`."""
        self._patience_s = patience_s
        self._kept_s = kept_s
        self._made: dict[tuple[str, int], float] = {}
        """By generation and epoch: when its reader said that it left a formation."""
        self._left: dict[str, float] = {}
        """When each was left last."""

    def suspects_with(self, question: ResumeQuestion, now_s: float) -> set[str]:
        """Those that were left of late, by this reader or another. The same question asked again
        is one complaint."""
        key = question.generation_id, question.last_epoch
        if question.left_formation_id and key not in self._made:
            self._made[key] = self._left[question.left_formation_id] = now_s
        return {left for left, at_s in self._left.items() if now_s - at_s < self._patience_s}

    def forget(self, now_s: float) -> None:
        """Lets go of what is too old; call it now and then."""
        self._made = {k: at_s for k, at_s in self._made.items() if now_s - at_s < self._kept_s}
        self._left = {f: at_s for f, at_s in self._left.items() if now_s - at_s < self._patience_s}


class Patience:
    """Generations that wait for something better while another head would take them: one of the
    arithmetic they had, for another's next tokens may not be those that would have come; or word of
    the head they do not reach."""

    def __init__(self, at_most_s: float) -> None:
        self._at_most_s = at_most_s
        self._since: dict[str, float] = {}

    def waits(self, generation_id: str, now_s: float) -> bool:
        """Whether it waits on; asked whenever it could move."""
        return now_s - self._since.setdefault(generation_id, now_s) < self._at_most_s

    def over(self, generation_id: str) -> None:
        """It was granted, or is gone."""
        self._since.pop(generation_id, None)


class HandedOn:
    """How many generations run where they were handed on to, by the pipeline they began at."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}

    def count(self, began_at: str, formation_id: str, more: int) -> None:
        """So many more run there."""
        counts = self._counts.setdefault(began_at, {})
        counts[formation_id] = counts.get(formation_id, 0) + more
        if not counts[formation_id]:
            del counts[formation_id]
            if not counts:
                del self._counts[began_at]

    def loads(self, began_at: str) -> Mapping[str, int]:
        """By formation."""
        return self._counts.get(began_at, {})


class Needs(NamedTuple):
    """What a generation has to have of a head."""

    model: ModelRef
    positions: int
    """Of its prompt and its longest answer."""

    @classmethod
    def of(cls, request: GenerationRequest) -> Needs:
        return cls(request.model, len(request.prompt_ids) + request.sampling.max_tokens)


def best_head(
    needs: Needs,
    wanted: str,
    heads: Iterable[ServingHead],
    loads: Mapping[str, int],
    weights: Mapping[str, float],
    *,
    goes_on: bool,
    promised: str = "",
) -> ServingHead | None:
    """The one of the `promised` formation, else the least loaded, of the wanted arithmetic and of
    the phase that `goes_on` or begins, or of any when there is none; one whose KV cache it cannot
    outgrow. `loads`: generations that run, by formation; `weights` of pipelines, where not their
    throughputs count."""
    other = PipelinePhase.PREFILL if goes_on else PipelinePhase.DECODE

    def weight(head: ServingHead) -> float:
        route = head.route
        named = weights.get(route.pipeline_id, 0.0) if weights else route.throughput_tokens_per_s
        return max(named, 1e-9)

    return min(
        (head for head in heads if head.takes_new and _suits(head, needs)),
        key=lambda head: (
            bool(wanted) and head.numerics_class != wanted,
            head.phase is other,
            head.route.formation_id != promised,
            (loads.get(head.route.formation_id, 0) + 1) / weight(head),
        ),
        default=None,
    )


def is_expected(
    request: GenerationRequest, wanted: str, heads: Iterable[ServingHead], coming: Coming
) -> bool:
    """A head of the wanted arithmetic is about to serve, or one that is still listed does not
    serve now: it comes back, or what is lost is known in a moment, and replaced."""
    return (request.model, wanted) in coming or any(
        head.numerics_class == wanted and not head.departs and _suits(head, Needs.of(request))
        for head in heads
    )


def _suits(head: ServingHead, needs: Needs) -> bool:
    return head.route.model == needs.model and head.route.max_positions >= needs.positions
