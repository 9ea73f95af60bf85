"""Which plan follows: what happens to the mesh, what placement is asked of it, what is taken up.

One question at a time, of one model after another, until one is better served otherwise: the
others keep what they have. Those come first that nothing serves: what is left is theirs before it
makes another one better. Where a model cannot be served within what the others leave, the next
question is how all of them divide it. What placement does not answer changes nothing. A question
that something more urgent overtook is taken back, and whatever is answered to it counts for
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf

from services.common.demand import Demand
from services.common.errors import FailedPrecondition, ShuntError
from services.controller.core.cluster.actions import Action, LogEvent
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.given_phases import with_phases_of
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.market import Market
from services.controller.core.cluster.plan import Deployment, Plan, PlannedStage
from services.controller.core.cluster.question import (
    Dividing,
    NextPlan,
    Question,
    Replanning,
    Wishes,
    dividing,
    question,
)
from services.controller.core.cluster.replanning import Ask, Cause, Replanner
from services.controller.core.cluster.why import Why
from services.controller.core.cluster.workload import Workload, Workloads, together


@dataclass(frozen=True, slots=True)
class SuccessionSettings:
    """What is asked for by itself, and when a model goes to sleep (seconds)."""

    automatic: bool = True
    """Otherwise an operator asks, and nobody else."""
    sleep_s: float = 300.0
    """A model that may have no node has none once nobody has asked for it for so long, in which it
    served."""


@dataclass(frozen=True, slots=True)
class Replanned:
    """What an operator's question came to."""

    change: bool
    number: int
    """Of the plan that counts."""
    gain: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found to do."""

    wakes_at_s: float = inf
    """Until then nobody need look again, if nothing happens."""
    question: Question | None = None
    """Placement is asked this; answer with `answered` or `failed`."""
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """What an answer came to."""

    actions: tuple[Action, ...] = ()
    question: Question | None = None
    """Placement is asked this next."""
    told: Replanned | None = None
    """An operator who waits is told so."""
    refused: bool = False
    """An operator who waits is told of the error."""


@dataclass(slots=True)
class _Out:
    """What placement is asked: of each model, for the same causes."""

    ask: Ask
    questions: tuple[Question, ...]
    """The first waits for its answer."""
    reasons: list[str] = field(default_factory=list)
    """Why the models before stay as they are."""


class Succession:
    """Ties cluster, market and workload to the replanner."""

    def __init__(
        self,
        replanner: Replanner,
        wishes: Wishes,
        settings: SuccessionSettings,
        *,
        cluster: Cluster,
        market: Market,
        workloads: Workloads,
    ) -> None:
        self._replanner = replanner
        self._wishes = wishes
        self._settings = settings
        self._cluster = cluster
        self._market = market
        self._workloads = workloads
        self._guests: frozenset[str] = frozenset()
        self._whole: set[str] = set()
        """Pipelines that lack no node, where weights stay."""
        self._refusals: dict[str, float] = {}
        self._number = 0
        """Of the newest plan that was seen."""
        self._out: _Out | None = None
        self._operator_waits = False
        self._busy_s = -inf
        """When a plan was last seen being carried out: nobody can be answered before it is."""
        self._began = False
        """What is offered at the start was taken note of."""

    # What happens

    def operator_asks(self, now_s: float) -> None:
        """Has the whole planned anew. Raises FailedPrecondition where there is no plan yet."""
        if self._cluster.plan is None:
            raise FailedPrecondition("there is no plan yet", field="plan")
        self._operator_waits = True
        self._replanner.happened(Cause.OPERATOR, now_s)

    def spend(self, budget_per_hour: float, now_s: float) -> None:
        """Plans are made within another budget from now on; what placement is asked is of the one
        before."""
        self._wishes = replace(self._wishes, budget_per_hour=budget_per_hour)
        self._cluster.spend(budget_per_hour, now_s)
        if self._out is not None:
            self._out = None
            self._replanner.withdrawn(now_s)

    def reported(
        self,
        router_id: str,
        incarnation: str,
        measured_s: float,
        demands: Mapping[str, Demand],
        now_s: float,
    ) -> None:
        """A router says what it was asked for."""
        self._workloads.reported(router_id, incarnation, measured_s, demands, now_s)

    @property
    def _weights_stay(self) -> bool:
        """What is lost waits for its like, and what may be had besides counts for nothing: phases
        are all that is asked for."""
        return self._cluster.settings.strategy.weights_stay

    def _hear(self, now_s: float) -> None:
        cluster, view = self._cluster, self._cluster.view
        if view.busy:
            self._busy_s = now_s
        if self._weights_stay:
            self._hear_pipelines(now_s)
        else:
            self._hear_nodes(now_s)
        if view.next_plan_number - 1 > self._number:
            if self._number:
                self._replanner.changed(now_s)
            self._number = view.next_plan_number - 1
        names = [goal.model.model_id for goal in cluster.goals.deployed]
        measured = [self._workloads.of(name, now_s) for name in names]
        self._replanner.measured(together(measured), now_s)

    def _hear_nodes(self, now_s: float) -> None:
        view = self._cluster.view
        self._hear_market(now_s)
        self._replanner.lacking(view.lacks(), now_s)
        self._replanner.there([node.node_id for node in view.staying() if node.present], now_s)
        guests = view.guests()
        if guests - self._guests:
            self._replanner.happened(Cause.CAME, now_s)
        self._guests = guests

    def _hear_pipelines(self, now_s: float) -> None:
        before, self._whole = self._whole, {p.pipeline_id for _, p in self._cluster.view.whole()}
        if before - self._whole and self._whole:
            self._replanner.happened(Cause.LOST, now_s)
        elif before and self._whole - before:
            self._replanner.happened(Cause.CAME, now_s)

    def _hear_market(self, now_s: float) -> None:
        offers = self._market.offers()
        if not self._began:
            # Who names no price offers what the nodes run on already.
            self._replanner.start_with([o for o in offers if o.price_per_hour is None])
            self._began = True
        self._replanner.offered(offers, now_s)
        shut = self._market.shut()
        for offer_id in self._refusals.keys() - shut.keys():
            del self._refusals[offer_id]
            self._replanner.opened(offer_id, now_s)
        for offer_id, until_s in shut.items():
            if until_s > now_s and self._refusals.get(offer_id, 0.0) < until_s:
                self._refusals[offer_id] = until_s
                self._replanner.refused(offer_id, until_s)
        over = self._market.exceeds(self._wishes.budget_per_hour)
        self._replanner.exceeded(over, now_s)

    # Questions

    def look(self, now_s: float) -> Look:
        """What there is to ask by now, or to do."""
        cluster, view = self._cluster, self._cluster.view
        if cluster.plan is None:
            return Look()  # the first plan is the cluster's own question
        self._hear(now_s)
        if not (self._settings.automatic or self._operator_waits):
            return Look()
        if view.asleep() and not self._wakes(now_s):
            return Look()
        sleeps_at_s = self._sleeps_at_s(now_s)
        if now_s >= sleeps_at_s:
            return Look(actions=tuple(self._sleep(now_s)))
        if self._out is not None and self._replanner.overtaken:
            self._out = None
            self._replanner.withdrawn(now_s)
        ask, asked = self._replanner.due(self._running(), now_s, busy=view.busy), None
        if ask is not None:
            self._out = _Out(ask, self._in_turn(self._questions(ask, now_s)))
            asked = self._out.questions[0]
        return Look(min(self._replanner.wakes_at_s(busy=view.busy), sleeps_at_s), asked)

    def _questions(self, ask: Ask, now_s: float) -> tuple[Replanning, ...]:
        return tuple(self._question(ask, goal, now_s) for goal in self._cluster.goals.deployed)

    def _in_turn(self, questions: Sequence[Replanning]) -> tuple[Replanning, ...]:
        """Those first whose model nothing serves."""
        return tuple(sorted(questions, key=lambda one: bool(one.running)))

    def _division(self, ask: Ask, now_s: float) -> Dividing:
        """Of what may be had by now: an offer may have said no since the question before."""
        self._hear_market(now_s)
        ask = self._replanner.renewed(ask, self._running(), now_s)
        goals = self._cluster.goals.deployed
        told = [self._workloads.of(goal.model.model_id, now_s) for goal in goals]
        return dividing(self._cluster, self._market, ask, self._wishes, told)

    def _question(self, ask: Ask, goal: Goal, now_s: float) -> Replanning:
        workload = self._workloads.of(goal.model.model_id, now_s)
        return question(self._cluster, self._market, ask, self._wishes, goal, workload, now_s)

    def _running(self) -> dict[str, int]:
        return {o.offer_id: self._market.running(o.offer_id) for o in self._market.offers()}

    def is_out(self, asked: Question) -> bool:
        """The very question waits for its answer: nothing overtook it."""
        return self._out is not None and self._out.questions[0] is asked

    def answered(self, asked: Question, answer: NextPlan, now_s: float) -> Taken:
        """What is to be done, and asked next."""
        out, cluster = self._out, self._cluster
        if out is None or not self.is_out(asked):
            return Taken()
        if answer.plan is None:
            out.reasons += answer.reasons
            out.questions = out.questions[1:]
            if out.questions:
                return Taken(question=out.questions[0])
            answer = NextPlan(None, 0.0, tuple(out.reasons))
        elif not self._still_holds(asked, answer.plan):
            self._out = None
            self._replanner.withdrawn(now_s)
            return Taken()
        else:
            answer = replace(answer, plan=self._of_all(asked, answer.plan))
        self._out, ask = None, out.ask
        attributes = {"causes": ", ".join(ask.causes), "reason": "; ".join(answer.reasons)}
        if answer.plan is None:
            self._replanner.kept(now_s)
            said = LogEvent("plan_kept", attributes=attributes)
        else:
            self._replanner.taken(now_s)
            self._number = answer.plan.number
            attributes |= {"plan": str(answer.plan.number), "gain": f"{answer.gain:.3f}"}
            said = LogEvent("plan_chosen", attributes=attributes)
            causes = (*ask.causes, Cause.DIVIDED) if isinstance(asked, Dividing) else ask.causes
            why = replace(answer.plan.why, causes=tuple(cause.value for cause in causes))
            cluster.plan_ready(replace(answer.plan, why=why), now_s)
        if Cause.OPERATOR not in ask.causes:
            return Taken((said,))
        self._operator_waits = False
        number, change = cluster.view.next_plan_number - 1, answer.plan is not None
        return Taken((said,), told=Replanned(change, number, answer.gain, answer.reasons))

    def failed(self, asked: Question, error: ShuntError, now_s: float) -> Taken:
        """What is to be done, and asked next."""
        if self._out is None or not self.is_out(asked):
            return Taken()
        ask, models = self._out.ask, self._cluster.goals.models
        divides = not self._weights_stay and len(models) > 1
        if error.permanent and isinstance(asked, Replanning) and divides:
            self._out.questions = (self._division(ask, now_s),)
            return Taken(question=self._out.questions[0])
        self._out = None
        attributes = {"causes": ", ".join(ask.causes), "reason": error.message}
        self._replanner.failed(error.message, error.permanent, now_s)
        told = Cause.OPERATOR in ask.causes
        if told:
            self._replanner.forget(Cause.OPERATOR)  # whoever asked is told, and may ask again
            self._operator_waits = False
        return Taken((LogEvent("replan_failed", attributes=attributes),), refused=told)

    def _of_all(self, asked: Question, made: Plan) -> Plan:
        """An answer with what it says nothing of."""
        running = self._cluster.plan
        if running is not None and isinstance(asked, Replanning) and asked.phases_only:
            return with_phases_of(running, made, asked.running)
        return _beside(running, made)

    def _still_holds(self, asked: Question, plan: Plan) -> bool:
        """No other plan has come meanwhile, the nodes that it names are there, and with what the
        others have it serves what is to be served; where those sit by now is the cluster's."""
        view, running = self._cluster.view, self._cluster.plan
        there = {node.node_id for node in view.staying()}
        newest = asked.number == view.next_plan_number
        models = plan.models if running is None else plan.models | running.models
        return newest and models == self._cluster.goals.models and plan.node_ids() <= there

    # Sleep

    def _wakes(self, now_s: float) -> bool:
        """Somebody asks for a model that sleeps, or it may sleep no more."""
        asleep = self._cluster.view.asleep()
        wanted = any(self._workloads.open(model.model_id, now_s) for model in asleep)
        if wanted or self._wishes.nodes_min:
            if not self._replanner.asking:
                self._replanner.happened(Cause.ASKED, now_s)
            return True
        return self._operator_waits

    def _sleeps_at_s(self, now_s: float) -> float:
        """When the model goes to sleep, if nobody asks for it until then; of several none does."""
        cluster, view = self._cluster, self._cluster.view
        if self._wishes.nodes_min or not self._settings.automatic:
            return inf
        if self._weights_stay:
            return inf  # who wakes would have to load
        if view.asleep() or view.busy or self._out is not None or self._operator_waits:
            return inf
        if len(cluster.goals.deployed) > 1:
            return inf  # who wakes would find its nodes another one's
        name = cluster.goals.deployed[0].model.model_id
        if self._workloads.open(name, now_s):
            return inf
        asked_s, changed_s = self._workloads.asked_s(name), self._replanner.changed_s
        return max(asked_s, changed_s, self._busy_s) + self._settings.sleep_s

    def _sleep(self, now_s: float) -> list[Action]:
        """No pipeline any more, until somebody asks."""
        cluster = self._cluster
        (goal,) = cluster.goals.deployed
        deployment = Deployment(goal.model, goal.aim.objective, ())
        quiet = f"nobody asked for it for {self._settings.sleep_s:g} s"
        why = Why((quiet,), causes=(Cause.QUIET.value,))
        plan = Plan(cluster.view.next_plan_number, (deployment,), why)
        attributes = {"plan": str(plan.number), "quiet_s": f"{self._settings.sleep_s:g}"}
        self._replanner.changed(now_s)
        cluster.plan_ready(plan, now_s)
        return [LogEvent("fell_asleep", attributes=attributes)]

    # What others see

    def imagined(self, now_s: float) -> tuple[Replanning, ...]:
        """What placement would be asked now, for each model. Raises FailedPrecondition where there
        is no plan."""
        if self._cluster.plan is None:
            raise FailedPrecondition("there is no plan yet", field="plan")
        ask = self._replanner.imagined(self._running(), now_s)
        return self._questions(ask, now_s)

    def workload(self, model_id: str, now_s: float) -> Workload | None:
        """What is asked of a model now; None while nobody can tell."""
        return self._workloads.of(model_id, now_s)

    def open(self, model_id: str, now_s: float) -> int:
        """Requests of a model that wait or are being answered."""
        return self._workloads.open(model_id, now_s)


def _beside(running: Plan | None, plan: Plan) -> Plan:
    """The plan with every other model's deployment as it is, but for nodes that it gives away; no
    name is used twice."""
    others = running.deployments if running is not None else ()
    rest = tuple(_less(one, plan) for one in others if one.model not in plan.models)
    taken = {p.pipeline_id for one in rest for p in one.pipelines}
    own = [pipeline.pipeline_id for _, pipeline in plan.pipelines()]
    free = (name for name in map("pipeline-{}".format, count(1)) if name not in {*taken, *own})
    renamed = {name: next(free) for name in own if name in taken}
    return replace(plan, deployments=(*rest, *plan.renamed(renamed).deployments))


def _less(deployment: Deployment, plan: Plan) -> Deployment:
    """The deployment with seats for anybody where the plan has other places for their nodes."""
    given = plan.node_ids()

    def left(stage: PlannedStage) -> PlannedStage:
        return replace(stage, node_id="") if stage.node_id in given else stage

    pipelines = tuple(replace(p, stages=tuple(map(left, p.stages))) for p in deployment.pipelines)
    return replace(deployment, pipelines=pipelines)
