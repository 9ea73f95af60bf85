"""What this process has done, for Describe and for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.engine.core.scheduler import Scheduler, Step

STEPS = Counter("shunt_engine_steps", "Steps begun by this head.")
SAMPLED = Counter("shunt_engine_sampled_tokens", "Tokens sampled for this head's generations.")
REPLAYED = Counter("shunt_engine_replayed_tokens", "Output ids read again from what calls held.")
DIVERGED = Counter(
    "shunt_engine_diverged", "Generations ended because two holders of one position disagreed."
)
BATCH = Histogram(
    "shunt_engine_decode_batch",
    "Sequences decoded in a step.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
RUNNING = Gauge("shunt_engine_running", "Sequences in the running batch.")
QUEUED = Gauge("shunt_engine_queued", "Sequences that wait for a place.")
USED_BLOCKS = Gauge("shunt_engine_used_kv_blocks", "KV cache blocks in use.")
FORMATIONS_ENDED = Counter("shunt_engine_formations_ended", "Formations that ended here.")


class Counters:
    """Counts since the process started."""

    def __init__(self) -> None:
        self.steps = 0
        self.sampled_tokens = 0
        self.decoded_sequences = 0
        self.decode_steps = 0
        self.replayed_tokens = 0
        self.computed_s = self.stepped_s = 0.0
        """Of this stage's steps: time on a core, and all that they took with waits and rests."""
        self._diverged = 0

    def departed(self, step: Step) -> None:
        """A step began."""
        self.steps += 1
        STEPS.inc()
        if step.decodes:
            self.decode_steps += 1
            self.decoded_sequences += step.decodes
            BATCH.observe(step.decodes)
        if step.replayed:
            self.replayed_tokens += step.replayed
            REPLAYED.inc(step.replayed)

    def came_back(self, tokens: int) -> None:
        """A step brought this many tokens."""
        self.sampled_tokens += tokens
        SAMPLED.inc(tokens)

    def stepped(self, computed_s: float, took_s: float) -> None:
        """This stage made a step."""
        self.computed_s += computed_s
        self.stepped_s += took_s

    def diverged(self, total: int) -> None:
        """So many generations of this head have diverged so far."""
        DIVERGED.inc(total - self._diverged)
        self._diverged = total

    @staticmethod
    def gauge(scheduler: Scheduler | None) -> None:
        """Shows the running batch as it is now."""
        RUNNING.set(scheduler.running if scheduler else 0)
        QUEUED.set(scheduler.queued if scheduler else 0)
        USED_BLOCKS.set(scheduler.used_blocks if scheduler else 0)
