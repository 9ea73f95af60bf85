"""Callers who say what is wrong, late or none of their business: it must change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from services.common.errors import NotFound, ShuntError
from services.common.exchange import (
    Checkpoint,
    GenerateCall,
    LeaveReason,
    Phase,
    ResumeQuestion,
)
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    LayerRange,
    ModelRef,
    TokenLogprob,
    TokenSpan,
)
from services.common.token_run import TokenRun, parse_event_id
from services.controller.core.cluster.actions import Beat, Loaded, LoadStage
from services.controller.core.cluster.applying import operators_plan
from services.engine.core.actions import NewToken, SequenceKey
from simulator.environment.settings import MODEL
from simulator.processes.engine import SimulatedEngine
from simulator.processes.stages import VOCAB_SIZE
from simulator.world import World

GARBLED = (TokenSpan(7, 0, (1,)),)
_STAGE = '{"layers": [0, 30]}'
_PLAN = (
    '{"deployments": [{"model": "model", "pipelines":'
    ' [{"id": "p", "weight_tokens_per_s": 1, "phase": "both", "stages": [STAGE]}]}]}'
)
SLIPS = tuple(
    _PLAN.replace("STAGE", _STAGE).replace(right, wrong)
    for right, wrong in (
        ('"model": "model"', '"model": "other"'),
        ('"model": "model"', '"model": "model", "digest": "d2"'),
        ('"model": "model"', '"model": 7'),
        ('"deployments"', '"version": 2, "deployments"'),
        ('"deployments"', '"deployment"'),
        ('"p"', '""'),
        ('"both"', '"decode", "onward": {"p": 1}'),
        ('"both"', '"half"'),
        ('_s": 1', '_s": -1'),
        ('_s": 1', '_s": 1' + "0" * 400),
        ("[0, 30]", "[1, 30]"),
        ("[0, 30]", "[0, 0]"),
        ("[0, 30]", "30"),
        (_STAGE, ""),
        (_STAGE, '{"layers": [0, 30], "tp_degree": 0}'),
        (_STAGE, '{"layers": [0, 30], "shape": {"relative_speed": 0}}'),
        (_STAGE, '{"layers": [0, 9], "node": "a"}, {"layers": [9, 30], "node": "a"}'),
        ("{", ""),
    )
)
"""Plans of an operator who errs."""
NOBODY = SequenceKey("nobody", 1, 0)


class Stranger:
    """Tries something at every turn; `fail` is told when it had an effect."""

    def __init__(self, world: World, random: Random, fail: Callable[[int, str], None]) -> None:
        self.world = world
        self.random = random
        self.fail = fail

    def turn(self) -> None:
        """One of everything, and a look at the status."""
        world = self.world
        controller = world.controller
        if controller.alive and not controller.frozen:
            self._journal()
            self._cluster()
            self._look()
        heads = [e for e in world.engines if e.core._held and not e.frozen]
        if heads:
            self._head(self.random.choice(heads))
        self._refused(parse_event_id, "1;2")
        self._refused(TokenRun().append, -1, (1,))
        self._refused(TokenRun().append, 0, (1,), (TokenLogprob(0.0), TokenLogprob(0.0)))

    def _refused(self, ask: Callable[..., object], *args: object) -> None:
        try:
            ask(*args)
        except ShuntError:
            return
        self.fail(4, "a stranger was served")

    def _journal(self) -> None:
        ledger, now_s = self.world.controller.ledger, self.world.clock.now_s
        for name, entry in list(ledger._entries.items())[:2]:
            other = replace(entry.request, model=ModelRef("model", "d2"))
            good = Checkpoint(
                name, entry.epoch, entry.incarnation, entry.formation_id, entry.request, ()
            )
            bad = [
                replace(good, formation_id="elsewhere"),
                replace(good, request=other),
                replace(good, epoch=entry.epoch + 1),
                replace(good, incarnation="somebody"),
                replace(good, spans=(TokenSpan(0, 10_000, (5,)),)),
                replace(good, spans=(TokenSpan(0, 0, (9, 9)),)) if entry.lengths[0] else good,
            ]
            before = entry.lengths, entry.epoch, entry.sealed
            for checkpoint in bad:
                outcome = ledger.checkpoint(checkpoint, None, now_s)
                if outcome.records:
                    self.fail(4, f"{checkpoint} was taken")
            self._refused(ledger.resume, self._question(name, other), (), now_s)
            self._refused(ledger.resume, self._question(name, None, GARBLED), (), now_s)
            if entry.lengths[0]:
                wrong = (TokenSpan(0, 0, (9,)),)
                self._refused(ledger.resume, self._question(name, None, wrong), (), now_s)
            if (entry.lengths, entry.epoch, entry.sealed) != before:
                self.fail(4, f"a stranger changed {name}")
        self._hear_nothing()
        unknown = Checkpoint("nobody", 1, "somebody", "elsewhere", None, ())
        if ledger.checkpoint(unknown, None, now_s).reply.refusal is None:
            self.fail(4, "a generation without a request was bound")
        self._refused(ledger.resume, self._question("nobody", None), (), now_s)
        self._refused(ledger.view, "nobody", (), now_s)
        ledger.cancel("nobody", 0, CancelReason.STOP, 1, now_s)

    def _question(
        self, name: str, request: GenerationRequest | None, held: tuple[TokenSpan, ...] = ()
    ) -> ResumeQuestion:
        return ResumeQuestion(name, 0, request, held)

    def _hear_nothing(self) -> None:
        """A reader's line is slow, or its router: the head that serves keeps its epoch."""
        ledger, cluster = self.world.controller.ledger, self.world.controller.cluster
        now_s = self.world.clock.now_s
        heads = {h.route.formation_id: h for h in cluster.view.heads(now_s) if not h.stalled}
        for name, entry in list(ledger._entries.items()):
            head = heads.get(entry.formation_id)
            ended = entry.sealed or entry.finished or name in ledger._tombstones
            if head is None or head.hands_over or ended:
                continue
            left, reason = entry.formation_id, LeaveReason.SILENT
            question = ResumeQuestion(name, entry.epoch, entry.request, (), left, reason)
            outcome = ledger.resume(question, cluster.view.heads(now_s), now_s)
            if outcome is None or outcome.records or outcome.reply.epoch != entry.epoch:
                self.fail(9, f"{name} moves from a head that serves")

    def _cluster(self) -> None:
        controller, now_s = self.world.controller, self.world.clock.now_s
        controller.advance()  # what others told it
        cluster = controller.cluster
        loaded = Loaded(1, "")
        nobody, somebody = (
            LoadStage(node_id, incarnation, "", MODEL, LayerRange(0, 1), 1)
            for node_id, incarnation in (("nobody", ""), ("node-1", "somebody"))
        )
        cluster.node_gone("nobody", "", "rumour", now_s)
        cluster.node_gone("node-1", "somebody", "rumour", now_s)
        for load in (nobody, somebody):
            cluster.load_done(load, loaded, now_s)
            cluster.load_failed(load, "rumour", False, now_s)
        cluster.formed("elsewhere", now_s)
        cluster.form_failed("elsewhere", "rumour", now_s)
        cluster.drained("elsewhere", 1, now_s)
        actions = cluster.advance(now_s)
        if actions:
            self.fail(4, f"a stranger moved the cluster: {actions}")
        self._refused(cluster.interrupt, "nobody", 1.0, False, now_s)
        view = cluster.view
        for text in SLIPS:
            self._refused(operators_plan, text, view.next_plan_number, cluster.goals, view.shapes())
        try:
            cluster.heartbeat(Beat("nobody", "somebody", ""), now_s)
        except NotFound:
            return
        self.fail(4, "a stranger's heart was heard")

    def _look(self) -> None:
        controller = self.world.controller
        heads = controller.cluster.view.heads(self.world.clock.now_s)
        for line in controller.ledger.population(heads).open:
            controller.ledger.head_of(line.generation_id)
        for router in self.world.routers:
            router.balancer.models()
        most = self.world.settings.scheduler.max_sequences
        for engine in self.world.engines:
            lead = engine.batching.lead
            if lead is None or engine.place is None:
                continue
            batch, steps = lead.scheduler, len(engine.place.members) + 1  # of who is awaited
            if batch.running > most or batch.in_flight > steps or batch.queued < 0:
                self.fail(8, f"{engine.name} runs {batch.running} in {batch.in_flight} steps")

    def _head(self, engine: SimulatedEngine) -> None:
        core, now_s = engine.core, self.world.clock.now_s
        name, held = next(iter(core._held.items()))
        good = GenerateCall(held.request, held.epoch, held.formation_id)
        before = held.lengths, held.reader, held.life
        bad = [
            replace(good, formation_id="elsewhere"),
            replace(good, epoch=held.epoch - 1),
            replace(good, request=replace(held.request, prompt_ids=(*held.request.prompt_ids, 1))),
            replace(good, held=GARBLED),
            replace(good, request=replace(held.request, generation_id="x"), formation_id="y"),
        ]
        if core._formation_id and core._drain_began_s is None:
            gap = (TokenSpan(0, 5, (1,)),)
            new = replace(held.request, generation_id="x")
            bad.append(GenerateCall(new, 2, core._formation_id, gap))
        for call in bad:
            self._refused(core.generate, -1, call, now_s)
        lead = engine.batching.lead
        if lead is not None and lead.formation_id == good.formation_id:
            for call in self._beyond(good):
                self._refused(engine.batching.generate, -1, call, now_s)
        self._refused(core.drain, "elsewhere", now_s)
        actions = [
            *core.dissolve("elsewhere", now_s),
            *core.cancel("nobody", 0, CancelReason.STOP, now_s),
            *core.stepped(core.step, [NewToken(NOBODY, 0, 1)], now_s),
            *core.sequence_stopped(NOBODY, now_s),
        ]
        core.sequence_phase(NOBODY, Phase.DECODE)
        core.detach(-1, now_s)
        silent = core.next_frame(-1, now_s) is None
        if actions or not silent or (held.lengths, held.reader, held.life) != before:
            self.fail(4, f"a stranger changed {name} at its head")

    def _beyond(self, good: GenerateCall) -> list[GenerateCall]:
        """What no formation of this model can run."""
        request, sampling = good.request, good.request.sampling
        end = sampling.max_tokens
        samplings = (
            replace(sampling, max_tokens=1 << 20),
            replace(sampling, top_logprobs=1000),
            replace(sampling, logit_bias={VOCAB_SIZE: 1.0}),
            replace(sampling, stop_token_ids=(-1,)),
        )
        requests = (
            replace(request, model=ModelRef("model", "d2")),
            replace(request, prompt_ids=(VOCAB_SIZE,)),
            *(replace(request, sampling=other) for other in samplings),
        )
        held = (TokenSpan(0, end, (1,)),)
        return [*(replace(good, request=other) for other in requests), replace(good, held=held)]
