"""Mistakes known from other systems, as patches to the cores; the simulation must catch each."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = "services/engine/core/generations.py"
HELD = "services/engine/core/held.py"
NODE = "services/controller/core/cluster/node.py"
LOSSES = "services/controller/core/cluster/losses.py"
STEPS = "services/controller/core/cluster/steps.py"
SURPLUS = "services/controller/core/cluster/surplus.py"
CHANGES = "services/controller/core/cluster/changes.py"
LEDGER = "services/controller/core/ledger/ledger.py"
MIGRATION = "services/controller/core/ledger/migration.py"
DIFFERENCE = "services/controller/core/cluster/difference.py"
RUNNING = "services/controller/core/ledger/running.py"
GRANTING = "services/controller/core/ledger/granting.py"
LIVENESS = "services/controller/core/cluster/liveness.py"
FOLLOWER = "services/router/core/follower.py"
TOKEN_RUN = "services/common/token_run.py"
GENERATION = "services/common/generation.py"
SCHEDULER = "services/engine/core/scheduler.py"
BLOCKS = "services/engine/core/blocks.py"
SEQUENCE = "services/engine/core/sequence.py"
SHARING = "services/engine/core/sharing.py"
PREFIX = "services/common/prefix.py"
ENTRY = "services/controller/core/ledger/entry.py"
BATCHING = "services/engine/core/batching.py"
LEAD = "services/engine/core/lead.py"
TEXT = "services/router/core/text.py"
TURNS = "services/controller/core/cluster/turns.py"
DEALER = "services/controller/core/cluster/dealer.py"
MARKET = "services/controller/core/cluster/market.py"
NOTICES = "services/controller/core/cluster/notices.py"
REPLANNING = "services/controller/core/cluster/replanning.py"
SUCCESSION = "services/controller/core/cluster/succession.py"
SCHEDULE = "services/controller/core/departure/schedule.py"
DEPARTURE = "services/controller/core/departure/departure.py"
CLUSTER = "services/controller/core/cluster/cluster.py"
ROUTES = "services/controller/core/cluster/routes.py"
PIPELINE = "services/controller/core/cluster/pipeline.py"
MARKETS = "markets.py"
DEPARTURES = "departures.py"
SPLITS = "splits.py"
NOTES = "services/controller/core/cluster/notes.py"
INCOMING = "services/engine/core/incoming.py"
AHEAD = "ahead.py"
GATHERING = "services/engine/core/gathering.py"
SHELF = "services/engine/core/shelf.py"
SHELVES = "shelves.py"
CONTENTS = "services/engine/core/contents.py"
SEATS = "seats.py"
PREFIXES = "prefixes.py"
QUOTAS = "services/router/core/quotas.py"
ADMISSION = "services/router/core/admission.py"
DISPATCHING = "services/router/core/dispatching.py"
SHARES = "services/controller/core/shares.py"
LOAD = "services/engine/core/load.py"
FAIR_QUEUE = "services/common/fair_queue.py"
DOORS = "doors.py"
BACKGROUND = "services/controller/core/ledger/background.py"
EVENTS = "services/router/openai/responses/events.py"
RESPONSES = "background.py"
RETENTION = "services/controller/core/ledger/retention.py"
ROUNDING = "rounding.py"


@dataclass(frozen=True)
class Mistake:
    """Text that stands once in a core, and what a tired hand might write instead."""

    name: str
    path: str
    right: str
    wrong: str
    program: str = "schedules.py"
    """What must catch it."""
    first: int = 0
    """The seed to begin with; of one that is caught late, a seed that caught it before."""


MISTAKES = (
    Mistake(
        "no fence",
        LEDGER,
        "        if (checkpoint.epoch, checkpoint.incarnation) != "
        "(entry.epoch, entry.incarnation):\n"
        "            return CheckpointRefusal.STALE_EPOCH\n"
        "        if checkpoint.formation_id != entry.formation_id:\n"
        "            return CheckpointRefusal.UNKNOWN_FORMATION\n",
        "        if checkpoint.epoch > entry.epoch:\n"
        "            return CheckpointRefusal.STALE_EPOCH\n",
    ),
    Mistake(
        "ids are trusted, not compared",
        TOKEN_RUN,
        "for position in range(start, min(start + len(ids), len(held))):",
        "for position in range(start, start):",
    ),
    Mistake(
        "the base leaves out what the reader has",
        LEDGER,
        "            entry.fresh(question.held),",
        "            (),",
    ),
    Mistake(
        "the base is what the reader has",
        LEDGER,
        "return Outcome(Grant(entry.epoch, route, base), records, True, events)",
        "return Outcome(Grant(entry.epoch, route, question.held), records, True, events)",
    ),
    Mistake(
        "epochs follow the reader",
        LEDGER,
        "max(entry.epoch, question.last_epoch) + 1,",
        "question.last_epoch + 1,",
    ),
    Mistake(
        "every question gets a new epoch",
        MIGRATION,
        "        if question.last_epoch < entry.epoch:",
        "        if False:",
    ),
    Mistake(
        "a cancelled generation goes on",
        LEDGER,
        "            return refused(checkpoint, CheckpointRefusal.ENDED)",
        "            pass",
        first=42,
    ),
    Mistake(
        "grants are not read back after a restart",
        LEDGER,
        "            entry.give_to(record, record.epoch, from_the_start=starts_over)",
        "            entry.give_to(record, max(entry.epoch, 1))",
    ),
    Mistake(
        "sealed with a step in flight",
        HEAD,
        "if held.life is not Life.SEALING or held.in_batch:",
        "if held.life is not Life.SEALING:",
    ),
    Mistake(
        "a resumed sequence starts over",
        HEAD,
        "ids = tuple(choice.run.ids)",
        "ids = ()",
    ),
    Mistake(
        "a refused head goes on",
        HEAD,
        "            actions += self._give_up(held, CLOSE_REASONS[result.refusal], now_s)",
        "            held.resend()",
    ),
    Mistake(
        "nobody parks what nobody reads",
        HEAD,
        "if unread_s >= settings.detach_s and",
        "if unread_s >= 1e9 and",
        first=133,
    ),
    Mistake(
        "what nobody reads keeps its place",
        HELD,
        "[*(SetUnread(key, unread) for key in keys), WakeCheckpoints()]",
        "[*(SetUnread(key, False) for key in keys), WakeCheckpoints()]",
        first=11,
    ),
    Mistake(
        "max_tokens off by one",
        GENERATION,
        "if position + 1 >= sampling.max_tokens:",
        "if position >= sampling.max_tokens:",
    ),
    Mistake(
        "the reader asks without its ids",
        FOLLOWER,
        "name, epoch, request, self._held(), left, self._reason, unheard_s, self._handed_on",
        "name, epoch, request, (), left, self._reason, unheard_s, self._handed_on",
        first=27,
    ),
    Mistake(
        "silence of a head is its death",
        FOLLOWER,
        "        if serves:\n"
        "            return self._suspect(now_s) if self._silent_s >= settings.reach_s else []\n"
        "        silent = self._silent_s >= settings.silence_s\n"
        "        if silent or self._stepless_s >= settings.progress_s:\n"
        "            return self._resume(now_s, LeaveReason.SILENT)\n",
        "        silent = self._silent_s >= settings.silence_s\n"
        "        if silent or self._stepless_s >= settings.progress_s:\n"
        "            return self._resume(now_s, LeaveReason.UNREACHABLE)\n",
        "crowds.py",
    ),
    Mistake(
        "silence of a head is asked about though it serves",
        FOLLOWER,
        "        if serves:\n",
        "        if serves and self._silent_s < settings.silence_s:\n",
        "crowds.py",
    ),
    Mistake(
        "a head that is not reached for a moment is left",
        MIGRATION,
        " and question.unheard_s < self._settings.unheard_s:\n",
        " and question.unheard_s < 0:\n",
        "crowds.py",
    ),
    Mistake(
        "a late beat is a death",
        LIVENESS,
        "        if watched_s >= pulse.heard_s + self._spaced_s(pulse) + self._settings.stall_s:",
        "        if watched_s >= pulse.heard_s + 0.5:",
        "crowds.py",
    ),
    Mistake(
        "who hears nothing from a head that serves gets another epoch",
        MIGRATION,
        "        if question.reason is LeaveReason.SILENT and not holder.stalled:",
        "        if False:",
    ),
    Mistake(
        "a first launch is tried once",
        STEPS,
        "missing = lacking[: max(0, len(lacking) - len(surplus))]",
        "missing = lacking if not state.launched else []",
    ),
    Mistake(
        "a spare that is about to go is taken",
        NODE,
        "        return not self.lost and not self.leaving and self.deadline_s is None",
        "        return not self.lost and not self.leaving",
        first=11,
    ),
    Mistake(
        "a spare ends as any node without a place",
        SURPLUS,
        "            and not (node.lost or node.leaving or node.node_id in stay)",
        "            and not (node.lost or node.leaving)",
    ),
    Mistake(
        "who held several stages is not asked for its seat's alone",
        STEPS,
        "        if node.holds(seat.stage) or node.loading == seat.stage:",
        "        if node.has(seat.stage) or node.loading == seat.stage:",
        first=27,
    ),
    Mistake(
        "a lost node keeps its stage",
        LOSSES,
        "        if seat.node_id == node.node_id:\n            seat.pass_on()\n",
        "        if seat.node_id == node.node_id:\n            pass\n",
        first=121,
    ),
    Mistake(
        "more is admitted than there are blocks for",
        SCHEDULER,
        "            if kept or not self._has_room(self._sharing.lacking(sequence, found)):",
        "            if kept or not self._slots:",
        first=29,
    ),
    Mistake(
        "who is cancelled in a step in flight keeps its blocks",
        SCHEDULER,
        "        if sequence.slot >= 0:\n            self._vacate(sequence)\n\n    def _vacate",
        "        if sequence.slot >= 0 and not sequence.in_flight:\n"
        "            self._vacate(sequence)\n\n    def _vacate",
    ),
    Mistake(
        "a block is freed for one who may have another one's",
        BLOCKS,
        "                self._empty[block] = None\n\n    def take_use",
        "                self._empty[block - block % 2] = None\n\n    def take_use",
    ),
    Mistake(
        "a preempted sequence goes on where it was",
        SHARING,
        "        sequence.computed = len(found) * BLOCK_SIZE\n        self._blocks.use.q",
        "        sequence.computed = max(sequence.computed, len(found) * BLOCK_SIZE)\n"
        "        self._blocks.use.q",
        first=71,
    ),
    Mistake(
        "a block counts as computed before its rows run",
        SHARING,
        "        full = sequence.computed // BLOCK_SIZE\n",
        "        full = len(sequence.tokens) // BLOCK_SIZE\n",
    ),
    Mistake(
        "a block's name says nothing of the ids before it",
        PREFIX,
        "blake2b(parent + array",
        "blake2b(array",
        first=30,
    ),
    Mistake(
        "a block's name says nothing of the salt",
        PREFIX,
        "    salted = length + digest + request.cache_salt.encode()",
        "    salted = length + digest",
        first=30,
    ),
    Mistake(
        "a block that others use is given back whole",
        BLOCKS,
        "            self._users[block] -= 1\n",
        "            self._users[block] = 0\n",
    ),
    Mistake(
        "what was evicted is found again",
        BLOCKS,
        "        del self._by_hash[block_hash]\n",
        "",
        first=29,
    ),
    Mistake(
        "a prompt that is all there has no row to compute",
        SEQUENCE,
        "        return (len(self.tokens) - 1) // BLOCK_SIZE",
        "        return len(self.tokens) // BLOCK_SIZE",
        first=74,
    ),
    Mistake(
        "found blocks are not taken from what is free",
        SHARING,
        "        return fresh + self._blocks.idle_among(found)",
        "        return fresh",
        first=29,
    ),
    Mistake(
        "a resumed stream forgets what was cached",
        ENTRY,
        "choice.run.append(span.start, span.ids, span.logprobs, span.cached_tokens)",
        "choice.run.append(span.start, span.ids, span.logprobs)",
    ),
    Mistake(
        "rows of guesses count as computed, right or wrong",
        SCHEDULER,
        "            sequence.computed = end\n",
        "            sequence.computed = start + rows\n",
    ),
    Mistake(
        "guesses go beyond the blocks that their sequence has",
        SHARING,
        "        return min(drafts, len(sequence.blocks) * BLOCK_SIZE - len(sequence.tokens))",
        "        return drafts",
        first=28,
    ),
    Mistake(
        "who is stopped in a step in flight is forgotten at once",
        SCHEDULER,
        "        if not sequence.in_flight:\n            del self._by_key[key]\n",
        "        if True:\n            del self._by_key[key]\n",
    ),
    Mistake(
        "what stops is never told to have stopped",
        BATCHING,
        "        for key in result.stopped:",
        "        for key in ():",
        first=23,
    ),
    Mistake(
        "a formation is formed before its nodes have left the one before",
        TURNS,
        "        busy = {incarnation for incarnation, _ in self._leaving}",
        "        busy: set[str] = set()",
    ),
    Mistake(
        "a generation is granted to whichever model's head",
        GRANTING,
        "return head.route.model == needs.model and",
        "return",
    ),
    Mistake(
        "a hand-over begins before those that serve have prepared what follows",
        CHANGES,
        "        if not node.holds(seat.stage) and not (serves and node.has_fetched(seat.stage)):",
        "        if not node.holds(seat.stage) and not serves:",
    ),
    Mistake(
        "what was fetched while it served is never loaded",
        STEPS,
        "        if node.has_fetched(seat.stage) and self._state.serves(node):",
        "        if node.has_fetched(seat.stage):",
    ),
    Mistake(
        "a stop string is seen within one id only",
        TEXT,
        "        keep = 0 if self.finish else max(stop.held for stop in self._stops)",
        "        keep = 0",
    ),
    Mistake(
        "what runs does not count for the budget",
        MARKET,
        "        cost = sum(known) + (self._price(offer_id) or 0.0)",
        "        cost = self._price(offer_id) or 0.0",
        MARKETS,
        first=22,
    ),
    Mistake(
        "an offer that said no is taken again",
        MARKET,
        "        if self.open_count(offer_id) and not self._pauses.goes_on(offer_id, now_s):",
        "        if self.open_count(offer_id):",
        MARKETS,
        first=151,
    ),
    Mistake(
        "an offer that said no is named to placement",
        REPLANNING,
        "            if shut or (only_steady",
        "            if (only_steady",
        MARKETS,
        first=61,
    ),
    Mistake(
        "both generations of a pipeline run on one node",
        STEPS,
        "        if nodes is None or blockers(self._state, pipeline):",
        "        if nodes is None:",
        MARKETS,
    ),
    Mistake(
        "a retired pipeline ends before its successor serves",
        CHANGES,
        "    if formation is not None and formation.forming:",
        "    if formation is not None:",
        MARKETS,
    ),
    Mistake(
        "two formations go at once",
        CHANGES,
        "    if not retiring or any(pipeline.drains for pipeline in state.restless()):",
        "    if not retiring:",
        MARKETS,
    ),
    Mistake(
        "nothing cools down",
        REPLANNING,
        "            min([*settled, *steady], default=inf), "
        "self.changed_s + self._settings.cool_down_s",
        "            min([*settled, *steady], default=inf), self.changed_s",
        MARKETS,
    ),
    Mistake(
        "a notice that lapses leaves a successor",
        NOTICES,
        "        withdraw(state, pipeline, seat)\n    node.lapse()",
        "        pass\n    node.lapse()",
        MARKETS,
        first=145,
    ),
    Mistake(
        "advice is taken for a notice",
        DEALER,
        "            case NodeNotice(node_id, _, kind) if kind.is_advice:",
        "            case NodeNotice(node_id, _, kind) if False:",
        MARKETS,
        first=7,
    ),
    Mistake(
        "nothing comes of advice",
        STEPS,
        "        elif node.outgoing and (",
        "        elif node.deadline_s is not None and (",
        MARKETS,
        first=7,
    ),
    Mistake(
        "an answer to an older question is taken up",
        SUCCESSION,
        "        newest = asked.number == view.next_plan_number",
        "        newest = True",
        MARKETS,
        first=121,
    ),
    Mistake(
        "nodes of the old plan run on",
        SURPLUS,
        "        done = all(p.is_ready for p in state.restless())",
        "        done = False",
        MARKETS,
    ),
    Mistake(
        "a node that another process replaced was never launched",
        NODE,
        "        return Node(self.node_id, shape, now_s, launched=self.launched)",
        "        return Node(self.node_id, shape, now_s)",
        MARKETS,
        first=420,
    ),
    Mistake(
        "whoever is gone is paid for",
        DEALER,
        "                self.market.ended(node_id)\n                incarnation",
        "                incarnation",
        MARKETS,
    ),
    Mistake(
        "a stage on more ranks is the same stage",
        CHANGES,
        "    if (stage.layers, stage.tp_degree) != (seat.stage.layers, seat.stage.tp_degree):",
        "    if stage.layers != seat.stage.layers:",
        first=9,
    ),
    Mistake(
        "a seat for one offer is equal to a seat for any",
        CHANGES,
        "    if stage.offer_id and not stage.node_id and stage.offer_id != bought:",
        "    if False:",
        MARKETS,
        first=7,
    ),
    Mistake(
        "pipelines that are in both plans are made anew",
        CHANGES,
        "            if _equal(state, plan, deployment, planned, running):",
        "            if False:",
        MARKETS,
    ),
    Mistake(
        "a model that nothing is left for waits until the others have less",
        SUCCESSION,
        "        if error.permanent and isinstance(asked, Replanning) and divides:",
        "        if False:",
        MARKETS,
        first=55,
    ),
    Mistake(
        "an answer counts only while the other models sit where their plan says",
        SUCCESSION,
        "self._cluster.goals.models and plan.node_ids() <= there",
        "self._cluster.goals.models and _beside(running, plan).node_ids() <= there",
        MARKETS,
        first=90,
    ),
    Mistake(
        "another budget counts for plans, and not for launches",
        SUCCESSION,
        "        self._cluster.spend(budget_per_hour, now_s)\n",
        "",
        MARKETS,
        first=6,
    ),
    Mistake(
        "a new division spends what it likes",
        "services/placement/search/shares.py",
        "            over += cost_per_hour / self.budget_per_hour - 1",
        "            over += 0.0",
        MARKETS,
        first=117,
    ),
    Mistake(
        "who asks what a plan would change has it changed",
        DIFFERENCE,
        "    after = deepcopy(state)\n",
        "    after = state\n",
    ),
    Mistake(
        "whatever has to leave leaves at once",
        SCHEDULE,
        "        moves.append(_replay(one, min(begins_s, last_s), reasons[one.name], rates))",
        "        moves.append(_replay(one, now_s, reasons[one.name], rates))",
        DEPARTURES,
    ),
    Mistake(
        "what was told to stop is asked to go on",
        DEPARTURE,
        "                self._stopped.add(name)",
        "                pass",
        DEPARTURES,
    ),
    Mistake(
        "a drain seals what is to run on",
        HEAD,
        "            if held.life is Life.LIVE and name not in running",
        "            if held.life is Life.LIVE",
        DEPARTURES,
    ),
    Mistake(
        "a drain waits for what is to run on",
        HEAD,
        "            and not (held.life is Life.LIVE and name in running)",
        "            and name",
        DEPARTURES,
    ),
    Mistake(
        "a formation that departs takes new generations",
        ROUTES,
        "    return not pipeline.departing and state.goals.have(pipeline.model)",
        "    return state.goals.have(pipeline.model)",
        DEPARTURES,
    ),
    Mistake(
        "a pipeline departs for ever",
        PIPELINE,
        "        self.stalled, self.departs_s = False, inf",
        "        self.stalled = False",
        DEPARTURES,
    ),
    Mistake(
        "time that a market leaves is given away",
        NOTICES,
        "        if not node.taken and _others_take_over(",
        "        if _others_take_over(",
        DEPARTURES,
    ),
    Mistake(
        "an empty formation is kept until its deadline",
        CLUSTER,
        "        if pipeline is not None and pipeline.departing and pipeline.is_ready:",
        "        if pipeline is None:",
        DEPARTURES,
        first=42,
    ),
    Mistake(
        "who was handed on counts for ever",
        RUNNING,
        "if entry.began_at and runs is not (name in names):",
        "if entry.began_at and runs:",
        SPLITS,
    ),
    Mistake(
        "generations begin where they are to go on",
        ROUTES,
        "_is_open(state, p) and roles.begin(p))",
        "_is_open(state, p))",
        SPLITS,
    ),
    Mistake(
        "a grant takes the phases for one another",
        GRANTING,
        "PipelinePhase.PREFILL if goes_on else PipelinePhase.DECODE",
        "PipelinePhase.DECODE if goes_on else PipelinePhase.PREFILL",
        SPLITS,
    ),
    Mistake(
        "blocks are given away while they are copied",
        LEAD,
        "        allocator.share(places)\n",
        "",
        SPLITS,
    ),
    Mistake(
        "blocks that go ahead are given away while they are copied",
        LEAD,
        "        allocator.share(places)\n",
        "",
        AHEAD,
    ),
    Mistake(
        "blocks are kept before the step is back that brings what they hold",
        LEAD,
        "self.scheduler is None or self.scheduler.is_back(self.behind)",
        "True",
        AHEAD,
    ),
    Mistake(
        "a block is thought to hold what a step has yet to bring",
        SHARING,
        "self._blocks.name(block, block_hash, step)",
        "self._blocks.name(block, block_hash)",
        AHEAD,
    ),
    Mistake(
        "another block goes ahead under a block's name",
        SCHEDULER,
        "[(sequence.block_hash(i), sequence.blocks[i]) for i in indices]",
        "[(sequence.block_hash(i), sequence.blocks[start]) for i in indices]",
        AHEAD,
    ),
    Mistake(
        "what did not come is named all the same",
        INCOMING,
        "[name for name, _ in one.fetch.blocks[:count]]",
        "[name for name, _ in one.fetch.blocks]",
        AHEAD,
    ),
    Mistake(
        "what a silent stage was to fill is never given back",
        INCOMING,
        "self._scheduler.give_beginning((), self._unanswered.pop(number, ()), ())",
        "self._unanswered.pop(number, ())",
        AHEAD,
    ),
    Mistake(
        "what a silent stage may copy yet is given to another",
        LEAD,
        "        if not self.busy and self.scheduler",
        "        if self.scheduler",
        AHEAD,
    ),
    Mistake(
        "who waits for blocks that stages had is not looked after when they are given back",
        BATCHING,
        "        steps, waited_s = self._steps(now_s)\n        return Due(steps, ",
        "        steps, waited_s = (), ()\n        return Due(steps, ",
        AHEAD,
    ),
    Mistake(
        "what is there of a sequence to come is taken, and for nothing",
        INCOMING,
        "            self._scheduler.give_beginning(there, tuple(blocks.values()), ())\n",
        "",
        AHEAD,
    ),
    Mistake(
        "blocks that a sequence to come finds are not taken for it",
        SCHEDULER,
        "        self._blocks.share(found)\n        return found\n",
        "        return found\n",
        AHEAD,
    ),
    Mistake(
        "what a silent stage may write to yet is given to another",
        INCOMING,
        "            self._scheduler.give_beginning(one.there, (), ())\n",
        "            fresh = [block for _, block in one.fetch.blocks]\n"
        "            self._scheduler.give_beginning(one.there, fresh, ())\n",
        AHEAD,
    ),
    Mistake(
        "who waits for a fetch that another one waits for is alone with it",
        INCOMING,
        "            self._awaited[number].waiting.append(_Waiting(start))\n",
        "            self._awaited[number].waiting = [_Waiting(start)]\n",
        PREFIXES,
    ),
    Mistake(
        "one of those that wait for a fetch starts",
        INCOMING,
        "w.unread) for w in one.waiting]",
        "w.unread) for w in one.waiting[:1]]",
        PREFIXES,
    ),
    Mistake(
        "who stops while it waits starts all the same",
        INCOMING,
        "            one.waiting = left\n",
        "            pass\n",
        PREFIXES,
    ),
    Mistake(
        "blocks that are offered are given away while they are copied",
        LEAD,
        "        allocator.share(places)\n",
        "",
        PREFIXES,
    ),
    Mistake(
        "what is offered is named by who comes next in its prompt",
        BATCHING,
        "        leaving = Leaving.taken(self.lead, tuple(zip(names, found, strict=False)))\n",
        "        leaving = Leaving.taken(self.lead, tuple(zip(names[1:], found, strict=False)))\n",
        PREFIXES,
    ),
    Mistake(
        "another salt's beginning is fetched",
        PREFIX,
        "    salted = length + digest + request.cache_salt.encode()",
        "    salted = length + digest",
        PREFIXES,
    ),
    Mistake(
        "what is written over is taken for what it was",
        CONTENTS,
        "            self._names.pop(block, None)",
        "            pass",
        SEATS,
        first=3,
    ),
    Mistake(
        "whatever lies in a block's place is taken for it",
        CONTENTS,
        "self._names.get(block) == name",
        "block in self._names",
        SEATS,
    ),
    Mistake(
        "the block that a step begins with counts as untouched",
        CONTENTS,
        "step.block_table[step.start // BLOCK_SIZE : end]",
        "step.block_table[step.start // BLOCK_SIZE + 1 : end]",
        SEATS,
        first=9,
    ),
    Mistake(
        "what comes of a block is taken unchecked",
        GATHERING,
        "        return own == piece.checksum",
        "        return True",
        SHELVES,
    ),
    Mistake(
        "what comes twice counts both times",
        GATHERING,
        " or not lacking.issuperset(piece.layers):",
        ":",
        SHELVES,
    ),
    Mistake(
        "a shelf keeps more than it may",
        SHELF,
        "        if self.used_bytes + len(data) > share * self._limit_bytes:\n"
        "            return False\n",
        "",
        SHELVES,
    ),
    Mistake(
        "a layer that is kept twice is sent twice",
        SHELF,
        "range(max(end, kept.layers.start), min(",
        "range(kept.layers.start, min(",
        SHELVES,
    ),
    Mistake(
        "what is kept anew goes when it was to go first",
        SHELF,
        "            if kept.until_s > now_s:\n",
        "            if False:\n",
        SHELVES,
    ),
    Mistake(
        "a pipeline keeps its phase whatever the plan says",
        PIPELINE,
        "self.phase, self.onward = planned.phase, planned.onward",
        "self.onward = planned.onward",
        SPLITS,
    ),
    Mistake(
        "phases are forgotten in a crash",
        NOTES,
        '"phase": pipeline.phase,',
        '"phase": "both",',
        SPLITS,
        first=46,
    ),
    Mistake(
        "an answer that is told again gives its tokens back again",
        QUOTAS,
        "reserved = self._reserved.pop(generation_id, None)",
        "reserved = self._reserved.get(generation_id)",
        DOORS,
    ),
    Mistake(
        "with another share the bucket is full",
        QUOTAS,
        "    bucket.resize(limit * share, now_s)\n    return bucket\n",
        "    if bucket.a_minute != limit * share:\n"
        "        return Bucket(limit * share, now_s)\n"
        "    return bucket\n",
        DOORS,
    ),
    Mistake(
        "a stream is not followed any more when one of its readers is gone",
        QUOTAS,
        "            if not followed[generation_id]:\n",
        "            if followed:\n",
        DOORS,
    ),
    Mistake(
        "only the first choice of a request is reserved for",
        QUOTAS,
        " + request.choices * request.sampling.max_tokens",
        " + request.sampling.max_tokens",
        DOORS,
    ),
    Mistake(
        "a router that did not hear its share is taken to have heard it",
        SHARES,
        "router.held[name] = max(share, router.holds(name))",
        "router.held[name] = share",
        DOORS,
    ),
    Mistake(
        "a controller that has just begun takes the router that it hears first to be the only one",
        SHARES,
        "there = len(self.names)",
        "there = len(self._routers)",
        DOORS,
    ),
    Mistake(
        "a controller that has just begun deals out what it has not heard of",
        SHARES,
        "        if len(self._routers) < there:",
        "        if False:",
        DOORS,
    ),
    Mistake(
        "a tenant that has no place any more keeps its part of the last ones",
        ADMISSION,
        "del self._of_tenants[tenant], self._weights[tenant]",
        "del self._of_tenants[tenant]",
        DOORS,
    ),
    Mistake(
        "tolerant work takes no heed of places",
        DISPATCHING,
        "is PriorityClass.TOLERANT and not anyway:",
        "is PriorityClass.TOLERANT and anyway:",
        DOORS,
        first=15,
    ),
    Mistake(
        "who leaves while he waits keeps his place in the line",
        DISPATCHING,
        "            room.queue.remove(waiter)\n            room.shares.leave(",
        "            room.shares.leave(",
        DOORS,
    ),
    Mistake(
        "who came last goes first",
        FAIR_QUEUE,
        "_RANKS[request.priority], arrival)",
        "_RANKS[request.priority], -arrival)",
        DOORS,
    ),
    Mistake(
        "a head does not tell of those that wait",
        LOAD,
        "        mine.queued += 1\n",
        "",
        DOORS,
    ),
    Mistake(
        "who looks at what nobody reads is taken for its reader",
        LEDGER,
        "        entry.touched_s = now_s\n        state = ",
        "        entry.hear(now_s)\n        state = ",
        RESPONSES,
    ),
    Mistake(
        "what lost its head and its reader at once is offered to nobody",
        BACKGROUND,
        "        return entry.unread or (",
        "        return entry.unread and (",
        RESPONSES,
    ),
    Mistake(
        "who reads for nobody takes the place of a client's reader",
        HEAD,
        "        if call.for_nobody and held.has_client:\n"
        '            raise Superseded("a client reads it")\n',
        "",
        RESPONSES,
    ),
    Mistake(
        "what was to be stored is forgotten",
        RETENTION,
        "        if entry is None or not entry.stored:",
        "        if entry is None or entry.stored:",
        RESPONSES,
    ),
    Mistake(
        "what is deleted leaves no tombstone",
        LEDGER,
        "self._commit((Forgotten(generation_id), tombstone), now_s)",
        "self._commit((Forgotten(generation_id),), now_s)",
        RESPONSES,
    ),
    Mistake(
        "the last event that a reader had is told again",
        EVENTS,
        "        if self.number <= self._after:",
        "        if self.number < self._after:",
        RESPONSES,
    ),
    Mistake(
        "blocks of anybody may be rounded",
        PREFIX,
        "    return name[_HASH_BYTES:]",
        "    return name[_OWNER_BYTES:]",
        ROUNDING,
    ),
    Mistake(
        "a head does not say that it goes on from what was rounded",
        HEAD,
        "            held.inexact = held.inexact or held.owner in owners",
        "            pass",
        ROUNDING,
    ),
    Mistake(
        "what came rounded ahead of its generation is forgotten",
        BATCHING,
        "                    if lead.incoming.came_rounded(action):",
        "                    if False:",
        ROUNDING,
    ),
    Mistake(
        "a head that starts over computes from rounded blocks what was computed otherwise",
        LEDGER,
        "            exact = not record.request.sampling.kv_int8",
        "            exact = True",
        ROUNDING,
        first=48,
    ),
)
