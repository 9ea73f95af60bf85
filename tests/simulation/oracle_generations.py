"""Invariants of a generation: 1 to 11, 19, 30 and 38, of the list in oracles.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from watch import Watch

from services.common.errors import (
    Cancelled,
    Diverged,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    Superseded,
    Unavailable,
)
from services.common.exchange import (
    Checkpoint,
    Frame,
    Grant,
    Lengths,
    Phase,
    ResumeQuestion,
)
from services.common.generation import FinishReason, GenerationRequest, TokenSpan
from services.common.prefix import owner_of
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerEvent, Outcome
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Inexact,
    Kept,
    Record,
)
from services.engine.backend import BLOCK_SIZE
from services.engine.core.actions import SequenceKey
from services.engine.core.batching import Batching
from services.engine.core.held import Life
from services.engine.core.incoming import KvFetch, NamedBlock
from services.engine.core.lead import Leaving
from services.engine.core.scheduler import Step
from services.engine.core.sequence import BatchedSequence
from services.router.core.follower import Follower
from services.router.core.transcript import Usage
from simulator.processes.client import Client
from simulator.processes.stages import BLOCK_BYTES, bytes_of, contents_of, token_of

YIELDS_WITHIN_S = 0.5
"""What nobody reads gives way within this long: the blip, a tick of the head, a step."""


@dataclass(slots=True)
class Durable:
    """What the store has of a generation."""

    epoch: int
    request: GenerationRequest
    ids: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    cached: int = 0
    """What its first choice found of the prompt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader gets for one choice."""

    ids: tuple[int, ...]
    text: str
    finish: FinishReason | None


def reference(request: GenerationRequest, choice: int) -> Answer:
    """Of an exact engine that nobody disturbs, and a router that reads the whole at once."""
    sampling, ids, text = request.sampling, [], ""
    while True:
        held = bytes_of((*request.prompt_ids, *ids))
        token = token_of(sampling, choice, held, "")
        ids.append(token)
        if token in sampling.eos_token_ids and not sampling.ignore_eos:
            return Answer(tuple(ids), text, FinishReason.STOP)
        text += f" {token}"
        if stops := [stop for stop in request.stop_strings if stop in text]:
            cut = min(text.index(stop) for stop in stops)
            return Answer(tuple(ids), text[:cut], FinishReason.STOP)
        if len(ids) == sampling.max_tokens:
            return Answer(tuple(ids), text, FinishReason.LENGTH)


def answer(client: Client, choice: int) -> Answer:
    """As far as a client has it."""
    return Answer(tuple(client.ids[choice]), client.texts[choice], client.finish[choice])


class GenerationOracle(Watch):
    """What is sampled, journaled, granted, shown and ended."""

    def __init__(self, *, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.questions = 0
        self.grants: Counter[str] = Counter()
        self.planned: Counter[str] = Counter()
        self.silent_stages = 0
        """Faults of stages that were told to fill blocks, or to copy them, and did not answer: what
        they hold on to may be what a generation lacks."""
        self._unanswered: defaultdict[str, Counter[int]] = defaultdict(Counter)
        """Blocks that were to be filled, by formation, where somebody did not say that they are."""
        self._being_kept: defaultdict[str, Counter[int]] = defaultdict(Counter)
        """Blocks that stages are copying for others, by formation."""
        self.blocks: Counter[str] = Counter()
        """How often one was taken for what it is named."""
        self._contents: dict[bytes, bytes] = {}
        """What a block holds that goes by a name, by the ids of the sequence that named it."""
        self.handed_on: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._samples: dict[tuple[str, int, int, int], int] = {}
        self._sampled_to: dict[tuple[str, int, int, str], int] = {}
        """By generation, epoch, choice and head: two may run one epoch until one is bound."""
        self._durable: dict[str, Durable] = {}
        self._inexact_from: dict[str, Lengths] = {}
        """Where ids begin that nobody computes, as the store has it."""
        self._journaled: set[Client] = set()
        """Whose ids the store had when they were told the end."""
        self._tombstones: set[str] = set()
        self._owners: dict[tuple[str, int], tuple[str, str]] = {}
        """Head of each epoch, as the present controller has it."""
        self._durable_owners: dict[tuple[str, int], tuple[str, str]] = {}
        self._ledger: Ledger | None = None
        self._references: dict[tuple[str, int], Answer] = {}
        self._bases: dict[tuple[str, int], dict[int, int]] = {}

    # The journal

    def durable(self, ledger: Ledger, records: Sequence[Record]) -> None:
        """Records reached the store."""
        for record in records:
            name = record.generation_id
            self.note("durable", record)
            if isinstance(record, Forgotten | Kept):
                self._durable.pop(name, None)
                self._tombstones.discard(name)
                continue
            if name in self._tombstones:
                self.fail(4, f"{record} behind the end of {name}")
            if isinstance(record, (HeadBound, Granted)):
                epoch = record.epoch if isinstance(record, Granted) else 1
                self._durable_owners[name, epoch] = record.incarnation, record.formation_id
            if isinstance(record, HeadBound):
                if name in self._durable:
                    self.fail(3, f"{name} is bound twice")
                self._durable[name] = Durable(1, record.request)
                continue
            if isinstance(record, Inexact):
                self._declare(record)
            if isinstance(record, Ended) and record.choice is None:
                self._tombstones.add(name)
            if isinstance(record, Granted):
                held = self._durable.setdefault(name, Durable(0, record.request))
                if record.epoch <= held.epoch:
                    self.fail(3, f"{name}: epoch {record.epoch} behind {held.epoch}")
                held.epoch = record.epoch
                for span in record.spans:
                    self._append(name, span)
            if isinstance(record, IdsAppended):
                self._append(name, record.span)

    def _append(self, name: str, span: TokenSpan) -> None:
        durable = self._durable[name]
        held = durable.ids[span.choice]
        if span.start != len(held):
            self.fail(3, f"{name}: an append at {span.start} of a journal of {len(held)}")
        if not held and not span.choice:
            durable.cached = span.cached_tokens
        held += span.ids
        if self.exact and durable.request.sampling.kv_int8:
            lengths = self._inexact_from.get(name)
            end = len(held) if lengths is None else lengths[span.choice]
            right = self._reference(durable.request, span.choice).ids[:end]
            if tuple(held[: len(right)]) != right[: len(held)]:
                self.fail(38, f"{name}: {held} is not {right}, and nobody declared it")

    def _declare(self, record: Inexact) -> None:
        name, durable = record.generation_id, self._durable.get(record.generation_id)
        if durable is None or not durable.request.sampling.kv_int8:
            self.fail(38, f"{name} is declared inexact, and nobody asked for that")
        self._inexact_from.setdefault(name, record.lengths)

    def before(self, ledger: Ledger, checkpoint: Checkpoint) -> Any:
        """State before a checkpoint, for comparison behind it."""
        entry = ledger._entries.get(checkpoint.generation_id)
        ended = checkpoint.generation_id in ledger._tombstones
        return None if entry is None else (entry.epoch, entry.sealed, entry.lengths), ended

    def checkpoint(
        self, ledger: Ledger, checkpoint: Checkpoint, outcome: Outcome[Any], before: Any
    ) -> None:
        """The ledger answered a checkpoint."""
        if outcome.reply.refusal is not None:
            return
        self._check_model(ledger, checkpoint)
        known, ended = before
        name, epoch = checkpoint.generation_id, checkpoint.epoch
        if ended:
            self.fail(4, f"{name} accepted behind its end")
        if known is not None and known[0] != epoch:
            self.fail(4, f"{name}: epoch {epoch} accepted while {known[0]} holds")
        if ledger is not self._ledger:  # what the one before had not made durable, nobody heard
            self._ledger, self._owners = ledger, dict(self._durable_owners)
        owner = (checkpoint.incarnation, checkpoint.formation_id)
        if self._owners.setdefault((name, epoch), owner) != owner:
            self.fail(2, f"{name}: epoch {epoch} has two heads")
        for record in outcome.records:
            if isinstance(record, IdsAppended):
                span = record.span
                for position, token in enumerate(span.ids, span.start):
                    sampled = self._samples.get((name, epoch, span.choice, position))
                    if sampled != token:
                        self.fail(4, f"{name}: {token} was never sampled in epoch {epoch}")
        again = ledger.checkpoint(checkpoint, None, self._now_s)
        if again.records or again.reply.lengths != outcome.reply.lengths:
            self.fail(7, f"{name}: a doubled checkpoint changes the journal")

    def asked(self, question: ResumeQuestion) -> None:
        """A reader asks for an epoch."""
        self.questions += 1

    def _check_model(self, ledger: Ledger, checkpoint: Checkpoint) -> None:
        runs_at = self.world.controller.cluster.view.runs_at(checkpoint.formation_id)
        model = ledger.model_of(checkpoint.generation_id)
        if runs_at is not None and runs_at.model != model:
            self.fail(19, f"{checkpoint.generation_id} runs at {runs_at.pipeline_id}")

    def granted(self, ledger: Ledger, question: ResumeQuestion, outcome: Outcome[Grant]) -> None:
        """The ledger answered a Resume."""
        name, grant = question.generation_id, outcome.reply
        base = {span.choice: span.ids for span in grant.base}
        self.note("granted", name, grant.epoch, grant.head and grant.head.formation_id)
        record = next((r for r in outcome.records if isinstance(r, Granted)), None)
        if record is None:
            return
        self._bases[name, grant.epoch] = {choice: len(ids) for choice, ids in base.items()}
        durable = self._durable.get(name, Durable(0, record.request))
        presented = {span.choice: span.ids for span in question.held}
        goes_on = ledger.settings.strategy.migration or record.request.sampling.kv_int8
        whole = {span.choice for span in grant.base if goes_on or span.finish_reason is not None}
        if not goes_on and whole != set(base):
            self.fail(3, f"{name}: the base has what is to be computed again")
        for ids in (durable.ids, presented):
            for choice, held in ids.items():
                if (goes_on or choice in whole) and tuple(
                    base.get(choice, ())[: len(held)]
                ) != tuple(held):
                    self.fail(3, f"{name}: the base leaves out what was acknowledged or presented")
        if grant.head is None:
            return
        if grant.head.model != record.request.model:
            self.fail(19, f"{name} is granted to a head of {grant.head.model.model_id}")
        again = ledger.resume(
            question,
            self.world.controller.cluster.view.heads(self._now_s) if self.world else (),
            self._now_s,
        )
        if again is None or again.records or again.reply != grant:
            self.fail(7, f"{name}: the same question gets another answer")
        self.grants[name] += record.epoch > 1
        if "handed_on" in outcome.events[0].attributes:
            self.handed_on[name] += 1
            if self.handed_on[name] > 1:
                self.fail(9, f"{name} is handed on again")
        if outcome.events[0].attributes["planned"] == "true":
            self.planned[name] += 1
            owner, _ = self._owners.get((name, record.epoch - 1), ("", ""))
            for choice in range(question.request.choices if question.request else 0):
                end = self._sampled_to.get((name, record.epoch - 1, choice, owner), 0)
                finished = any(s.choice == choice and s.finish_reason for s in grant.base)
                if goes_on and end > len(base.get(choice, ())) and not finished:
                    self.fail(10, f"{name}: a planned move samples {end} again")

    def ledger_event(self, event: LedgerEvent) -> None:
        """Of the event log."""
        self.note(event.kind, event.generation_id, event.pipeline_id)

    # Heads and readers

    def batched(self, batching: Batching, step: Step) -> None:
        """A head chose what runs in its next step."""
        self._check_blocks(batching)
        held, running = batching.generations._held, set(step.keys)
        awaited = batching.lead.incoming._awaited.values() if batching.lead is not None else ()
        # They wait for blocks, and for nobody.
        fetches = {waiting.start.key for one in awaited for waiting in one.waiting}
        waits = [
            key
            for generation in held.values()
            if generation.reader is not None and generation.life is Life.LIVE
            for key in generation.keys_in_batch
            if key not in running | fetches
            and generation.choices[key.choice].phase is not Phase.DECODE
        ]
        for key in step.keys:
            generation = held[key.generation_id]
            unread_s = self._now_s - generation.unread_since_s
            yields = generation.reader is None and not generation.request.runs_unread
            if waits and yields and unread_s > YIELDS_WITHIN_S:
                name = key.generation_id
                self.fail(11, f"{waits} wait behind {name}, unread for {unread_s:.2f} s")

    def unanswered(self, batching: Batching, fetch: KvFetch) -> None:
        """Some stage may write to these blocks until it says that it does not."""
        self.silent_stages += 1
        lead = batching.lead
        awaited = lead.incoming._awaited.get(fetch.number) if lead is not None else None
        if lead is not None and awaited is not None:
            taken = self._unanswered[lead.formation_id]
            taken.update(block for _, block in fetch.blocks)

    def keeps(self, batching: Batching, leaving: Leaving) -> None:
        """Stages are to copy these, and nobody writes to them meanwhile."""
        if batching.lead is not None:
            self._being_kept[batching.lead.formation_id].update(b for _, b in leaving.blocks)

    def kept(self, batching: Batching, leaving: Leaving) -> None:
        """They have."""
        if batching.lead is not None:
            self._being_kept[batching.lead.formation_id].subtract(b for _, b in leaving.blocks)

    def kept_busy(self, formation_id: str, leaving: Leaving) -> None:
        """Some stage may copy these until it says that it does not."""
        self.silent_stages += 1
        self._unanswered[formation_id].update(block for _, block in leaving.blocks)

    def given_up(self, formation_id: str, blocks: Sequence[NamedBlock]) -> None:
        """No stage touches these any more for what it did not answer."""
        self._unanswered[formation_id].subtract(block for _, block in blocks)

    def rests(self, batching: Batching) -> None:
        """Nothing that happens at a head is to be done yet. What waits or runs there waits for a
        step, or for blocks that stages have."""
        lead = batching.lead
        if lead is None or lead.scheduler.in_flight or lead.incoming._awaited:
            return
        lent = self._unanswered[lead.formation_id] + self._being_kept[lead.formation_id]
        if lead.scheduler.has_work and not lent:
            self.fail(8, f"{lead.formation_id} stands still, and something waits there")

    def holds(self, name: bytes, held: bytes, *, in_place: bool) -> None:
        """A stage takes this for what goes by a name: it keeps it for others, or has it in the
        place in which it is wanted."""
        self.blocks["in place" if in_place else "kept"] += 1
        right, end = self._contents.get(name), BLOCK_BYTES if owner_of(name) else None
        if right is None or held[:end] != right[:end]:
            self.fail(30, f"what is taken for {name.hex()} is something else")

    def found(
        self, batching: Batching, key: SequenceKey, first: int, held: Sequence[bytes]
    ) -> None:
        """A sequence goes on behind blocks, from its `first` one on, that others have computed."""
        self.blocks["found"] += len(held)
        sequence = batching.lead.scheduler.find(key) if batching.lead is not None else None
        if sequence is not None:
            end = (first + len(held)) * BLOCK_SIZE
            right, its_own = contents_of(sequence.tokens[:end], first), owner_of(sequence.names[0])
            of_block = BLOCK_BYTES if its_own else None  # what it owns may have been rounded
            if [one[:of_block] for one in right] != [one[:of_block] for one in held]:
                self.fail(30, f"{key} goes on behind blocks of another text")

    def _check_blocks(self, batching: Batching) -> None:
        lead = batching.lead
        if lead is None:
            return
        running = lead.scheduler._running.values()
        uses = Counter(block for sequence in running for block in sequence.blocks)
        uses += self._unanswered[lead.formation_id] + self._being_kept[lead.formation_id]
        for awaited in lead.incoming._awaited.values():
            uses.update(awaited.there)
            uses.update(block for _, block in awaited.fetch.blocks)
        counted = {block: n for block, n in enumerate(lead.scheduler.blocks._users) if n}
        if uses != counted:
            self.fail(30, f"blocks are used {uses}, and counted as {counted}")
        texts: dict[int, Any] = {}
        for sequence in running:
            self._note_contents(sequence)
            for index, block in enumerate(sequence.blocks):
                if uses[block] > 1:
                    request, end = sequence.request, (index + 1) * BLOCK_SIZE
                    text = request.model, request.cache_salt, sequence.tokens[:end]
                    if texts.setdefault(block, text) != text:
                        self.fail(30, f"block {block} is for {text} and for {texts[block]}")

    def _note_contents(self, sequence: BatchedSequence) -> None:
        names = sequence.names[: sequence.named]
        if any(name not in self._contents for name in names):
            contents = contents_of(sequence.tokens[: len(names) * BLOCK_SIZE])
            self._contents.update(zip(names, contents, strict=True))

    def sampled(self, head: str, key: SequenceKey, position: int, token: int) -> None:
        """A last stage drew a token."""
        name, epoch, choice = key.generation_id, key.epoch, key.choice
        base = self._bases.get((name, epoch), {})
        if position < base.get(choice, 0):
            self.fail(10, f"{name}: epoch {epoch} samples {position} below its base {base}")
        clients = self.world.clients if self.world is not None else []
        mine = [c for c in clients if c.request.generation_id == name]
        if mine and all(c.left_s is not None and self._now_s - c.left_s > 5.0 for c in mine):
            self.fail(8, f"{name} runs though nobody reads it")
        self._samples[name, epoch, choice, position] = token
        self._sampled_to[name, epoch, choice, head] = position + 1
        self.note("sampled", name, epoch, choice, position, token)

    def frame(self, follower: Follower, frame: Frame) -> None:
        """A head told a reader something."""
        route = follower.route
        for client in self.world.clients if self.world is not None else ():
            if client.request.generation_id == follower.request.generation_id:
                client.last_head = route.incarnation if route is not None else ""

    def _reference(self, request: GenerationRequest, choice: int) -> Answer:
        key = request.generation_id, choice
        if key not in self._references:
            self._references[key] = reference(request, choice)
        return self._references[key]

    def _repeats(self, request: GenerationRequest) -> bool:
        """Everybody would compute what it says."""
        return self.exact and not request.sampling.kv_int8

    def _is_one(self, client: Client) -> bool:
        """What it had is what its generation says: the journal had it by then, or it is exact. What
        a head said and took with it nobody samples again where it is not."""
        return not client.request.sampling.kv_int8 or client in self._journaled

    def shown(self, client: Client) -> None:
        """A client got text."""
        if self._repeats(client.request):
            for choice in range(client.request.choices):
                has, right = answer(client, choice), self._reference(client.request, choice)
                if not right.text.startswith(has.text) or right.ids[: len(has.ids)] != has.ids:
                    self.fail(1, f"{client.name}: {has} is no prefix of {right}")

    def client_ended(self, client: Client) -> None:
        """A client got its end."""
        self.note("ended", client.name, type(client.error).__name__, client.finish)
        durable = self._durable.get(client.request.generation_id)
        if durable is not None and all(durable.ids[i] == ids for i, ids in enumerate(client.ids)):
            self._journaled.add(client)
        if client.ends != 1:
            self.fail(5, f"{client.name} ended {client.ends} times")
        if client.error is not None:
            self._error(client)
            return
        prompt, cached = len(client.request.prompt_ids), 0
        if client.usage is not None:
            cached = client.usage.cached_tokens
        counted = Usage(prompt, sum(map(len, client.ids)), cached)
        if client.usage != counted or not 0 <= cached < prompt or cached % BLOCK_SIZE:
            self.fail(6, f"{client.name}: {client.usage}, but it had {counted}")
        if None in client.finish:
            self.fail(5, f"{client.name} ended with {client.finish}")
        if client.first is not None and client.first.error is None and client.first.ended:
            if self._counts_once and client.usage != client.first.usage:
                self.fail(6, f"{client.name}: another router counts {client.first.usage}")
            for choice in range(client.request.choices if self._is_one(client.first) else 0):
                if answer(client, choice) != answer(client.first, choice):
                    self.fail(6, f"{client.name}: another router gives {answer(client, choice)}")
        if self._repeats(client.request):
            for choice in range(client.request.choices):
                has, right = answer(client, choice), self._reference(client.request, choice)
                if has != right:
                    self.fail(6, f"{client.name}: {has} is not {right}")

    @property
    def _counts_once(self) -> bool:
        """A generation that starts over finds another cache."""
        return self.world is not None and self.world.settings.ledger.strategy.migration

    def _error(self, client: Client) -> None:
        error = client.error
        self.errors[type(error).__name__] += 1
        clients = self.world.clients if self.world is not None else []
        mine = [c for c in clients if c.request.generation_id == client.request.generation_id]
        left_router = client.rejoins > 0 or len(mine) > 1
        allowed: tuple[type[Exception], ...] = (Unavailable,)
        if client.cancelled or (client.first is not None and client.first.cancelled):
            allowed += (Cancelled,)
        if left_router:
            allowed += (NotFound, Superseded)
        if left_router and not self.exact:
            allowed += (Diverged, FailedPrecondition, OutOfRange)
        if not isinstance(error, allowed):
            self.fail(5, f"{client.name} ended with {error!r}")

    # At rest

    def check_ended(self) -> None:
        """Every client has its end, within bounded time of the last fault."""
        for client in self.world.clients if self.world else ():
            if not client.ended and client.left_s is None:
                self.fail(5, f"{client.name} has no end")

    def check_one_sequence(self) -> None:
        """Text that was shown is a prefix of what the journal holds, unless the reader was told of
        an error, or left with ids that only its router held."""
        for client in self.world.clients if self.world else ():
            durable = self._durable.get(client.request.generation_id)
            if client.error is not None or durable is None:
                continue
            counted = client.usage if durable.ids[0] and self._counts_once else None
            if counted is not None and counted.cached_tokens != durable.cached:
                self.fail(6, f"{client.name}: {counted}, but the journal has {durable.cached}")
            for choice, ids in enumerate(client.ids):
                held = durable.ids[choice]
                if held[: len(ids)] != ids[: len(held)]:
                    self.fail(1, f"{client.name}: {ids} but the journal has {held}")

    def check_grants(self, faults: int, drains: int) -> None:
        """Nothing moves but for a fault, a plan that drained so many formations, or a client that
        was away."""
        for client in self.world.clients if self.world else ():
            name = client.request.generation_id
            planned = max(self.planned[name], drains)
            if self.grants[name] > faults + planned + client.rejoins:
                self.fail(9, f"{name}: {self.grants[name]} grants for {faults} faults")

    def check_unmoved(self) -> None:
        """Nothing was lost: nobody moved, nobody was told of an error."""
        if (moved := sum(self.grants.values())) or self.errors:
            self.fail(9, f"{moved} grants, {self.errors}, and nothing was lost")

    def check_stillness(self) -> None:
        """Nor did anybody ask."""
        self.check_unmoved()
        if self.questions or self.errors:
            self.fail(9, f"{self.questions} questions, {self.errors}, and nothing was lost")

    def check_rest(self) -> None:
        """Nothing is left over."""
        world = self.world
        if world is None:
            return
        for engine in world.engines:
            if engine.frozen:
                continue
            left = [n for n, h in engine.core._held.items() if h.life is not Life.FINISHED]
            if left or engine.core._readers or engine.core.open_generations:
                self.fail(8, f"{engine.name} still holds {left} {engine.core._readers}")
            lead = engine.batching.lead
            if lead is not None and (lead.scheduler.has_work or lead.scheduler.used_blocks):
                self.fail(8, f"{engine.name} still runs, in {lead.scheduler.used_blocks} blocks")
        for router in world.routers:
            if router.followings or any(s.client is not router for s in router.streams):
                self.fail(8, f"{router.name} still follows {router.followings}")
        ledger = world.controller.ledger
        ledger.tick(world.clock.now_s + 1e6)
        left = (
            *(ledger._entries, ledger._tombstones, ledger._abandoned),
            *(ledger._running._names, ledger._running._handed_on._counts),
            ledger._running._promised,
        )
        if any(map(len, left)):
            self.fail(8, "the journal forgets nothing")
