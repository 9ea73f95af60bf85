"""Whether a stage says the same of a generation however it runs, and by how much not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.generation import Sampling
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Sampled,
    SequenceOpen,
    SequenceStep,
    StageBackend,
)

PROMPTS = (1, 15, 16, 33, 130, 257, 520, 700)
"""Tokens of each."""
OUTPUTS = 32
CHUNK = 256
"""Rows of a step, as an engine cuts a prefill unless told otherwise."""
CUTS = (1, 7, 16, 31)
"""Ids that were there when a generation was cut."""
BLOCKS = (max(PROMPTS) + OUTPUTS) // BLOCK_SIZE + 1
"""Of one sequence."""
TOP = 5
"""Log probabilities that are compared beside that of the id."""


@dataclass(frozen=True, slots=True)
class Job:
    """A generation that goes on behind `held`; it begins at a step of its own."""

    slot: int
    prompt: Sequence[int]
    held: Sequence[int] = ()
    joins: int = 0


def prompt(length: int, vocab_size: int) -> list[int]:
    """Ids that look like none of the other lengths'."""
    return [(17 * i * i + 29 * i + 131 * length) % vocab_size for i in range(length)]


def run(stage: StageBackend, jobs: Sequence[Job], chunk: int = CHUNK) -> dict[int, list[Sampled]]:
    """What each job was given, by slot, up to OUTPUTS ids; a prefill takes `chunk` rows a step."""
    found: dict[int, list[Sampled]] = {job.slot: [] for job in jobs}
    done = dict.fromkeys(found, 0)
    sampling = Sampling(max_tokens=OUTPUTS, temperature=0, top_logprobs=TOP)
    step = 0
    while any(len(found[job.slot]) + len(job.held) < OUTPUTS for job in jobs):
        steps: list[SequenceStep] = []
        opens: list[SequenceOpen] = []
        rows: list[int] = []
        for job in jobs:
            new = found[job.slot]
            if step < job.joins or len(new) + len(job.held) >= OUTPUTS:
                continue
            if step == job.joins:
                opens.append(SequenceOpen(job.slot, sampling, 0, job.prompt, job.held))
            known = [*job.prompt, *job.held, *(sampled.token_id for sampled in new)]
            start = done[job.slot]
            end = min(start + chunk, len(known))
            table = range(job.slot * BLOCKS, job.slot * BLOCKS + (end - 1) // BLOCK_SIZE + 1)
            steps.append(SequenceStep(job.slot, start, end - start, table, end == len(known)))
            rows += known[start:end]
            done[job.slot] = end
        answer = stage.forward(Batch(steps, opens), rows)
        assert isinstance(answer, tuple)
        for sampled in answer:
            found[sampled.slot].append(sampled)
        step += 1
    stage.forward(Batch([], closes=list(found)), [])
    return found


@dataclass
class Agreement:
    """Generations beside the same ones undisturbed. Behind the first other id nothing is
    compared, for what follows has another context."""

    generations: int = 0
    other_ids: int = 0
    """Generations in which some id is another."""
    tokens: int = 0
    other_logprobs: int = 0
    """Tokens at which any log probability differs in any bit."""
    furthest: float = 0.0
    """The largest difference of a log probability of one and the same id."""

    def add(self, reference: Sequence[Sampled], found: Sequence[Sampled]) -> None:
        """`found` is what followed the last ids of `reference`, as many as there are."""
        self.generations += 1
        for expected, given in zip(reference[-len(found) :], found, strict=True):
            self.tokens += 1
            ours, theirs = _logprobs(expected), _logprobs(given)
            self.other_logprobs += ours != theirs
            apart = (abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys())
            self.furthest = max(self.furthest, *apart, 0.0)
            if expected.token_id != given.token_id:
                self.other_ids += 1
                return

    @property
    def exact(self) -> bool:
        return not (self.other_ids or self.other_logprobs)

    def figures(self) -> dict[str, Any]:
        return {
            "exact": self.exact,
            "generations": self.generations,
            "generations_with_other_ids": self.other_ids,
            "tokens": self.tokens,
            "tokens_with_other_logprobs": self.other_logprobs,
            "furthest_logprob": self.furthest,
        }


def _logprobs(sampled: Sampled) -> Mapping[int, float]:
    assert sampled.logprob is not None
    return {**dict(sampled.logprob.top), sampled.token_id: sampled.logprob.logprob}


@dataclass
class Exactness:
    """The ways a generation is disturbed."""

    cut: Agreement = field(default_factory=Agreement)
    chunked: Agreement = field(default_factory=Agreement)
    batched: Agreement = field(default_factory=Agreement)

    @property
    def exact(self) -> bool:
        return self.cut.exact and self.chunked.exact and self.batched.exact

    def figures(self) -> dict[str, Any]:
        return {
            "cut_and_replayed": self.cut.figures(),
            "prefill_in_other_chunks": self.chunked.figures(),
            "in_a_batch_of_8": self.batched.figures(),
        }


def measure(stage: StageBackend, vocab_size: int) -> Exactness:
    """Each prompt alone; cut and replayed; its prefill in other chunks; among all the others."""
    found = Exactness()
    stage.begin(BLOCKS * len(PROMPTS))
    prompts = [prompt(length, vocab_size) for length in PROMPTS]
    alone = [run(stage, [Job(slot, ids)])[slot] for slot, ids in enumerate(prompts)]
    for slot, ids in enumerate(prompts):
        held = [sampled.token_id for sampled in alone[slot]]
        for cut in CUTS:
            replayed = run(stage, [Job(slot, ids, held[:cut])])
            found.cut.add(alone[slot], replayed[slot])
        for chunk in (67, max(PROMPTS) + OUTPUTS):
            found.chunked.add(alone[slot], run(stage, [Job(slot, ids)], chunk)[slot])
    for stagger in (0, 1):
        jobs = [Job(slot, ids, joins=slot * stagger) for slot, ids in enumerate(prompts)]
        for slot, given in run(stage, jobs).items():
            found.batched.add(alone[slot], given)
    stage.end()
    return found
