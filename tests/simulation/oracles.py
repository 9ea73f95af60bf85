"""What must hold, checked while a schedule runs and when it rests.

Of a generation (oracle_generations.py), numbered as in the design's list:
1 every text is a prefix of what one sequence of ids says; 2 an epoch's checkpoints come from one
head; 3 the journal grows by append, epochs rise, a base has all that was acknowledged or presented;
4 nothing counts behind an end, from an old epoch or another formation; 5 every request ends, in one
way; 6 usage and finish are the same at every router; 7 a message twice does what one does; 8 at
rest nothing is left over, and the status agrees with itself; 9 moves are no more than faults and
planned moves; 10 a planned move samples nothing again; 11 nothing that is read waits behind what is
not; 19 it is at heads of its own model alone; 30 a head's blocks are counted as often as they are
used, and what two sequences use is the same of both: model, salt and every id up to its end; and
what is kept under a block's name, taken for it in its place, or gone on from, holds its ids, and
was written behind the ids that come before them.

Of a generation whose blocks may be rounded: 38 in the journal each id that is not what anybody
computes from those before it stands behind a record that says so; of no other is that said, and no
other goes on behind a rounded block (30).

Of every core: 12 it raises what is no domain error for nobody.

Of the cluster (oracle_cluster.py): 13 no node is told to join a formation before it has left the
one it was told to leave; 14 a node is in one formation at most, and a formation covers every layer
once; 15 once faults have ceased, what runs becomes what the plan says, within CARRIED_OUT_S; 16 a
launch has a reason of its own: a node that was lost, noticed or given up, or a seat that a plan
left open, one launch each; 17 a plan changes what it was said to change; 18 spares are there,
loaded, when faults have ceased, and who is about to go is given no place; 20 what serves gives way
to the plan when what follows it can begin; 21 no node is ended while it serves.

Of formations that depart (oracle_departures.py): 31 one that a market takes a node of, and nobody
follows, takes nothing new; what ends there in time is left there, and nothing leaves it long before
it has to, or stays behind its end; what was told to stop does not go on.

Of pipelines with phases (splits.py): 32 where all serve, generations begin at those that prefill
and go on, handed on once, at those that decode; a plan of other phases forms nothing anew, and its
phases are the pipelines', whoever crashes.

Of responses of the background (oracle_responses.py): 33 whoever was told an id finds its response,
unless he deleted it, and nobody else ends it; 34 its events are one log: what is read of them, of
any router, behind a number or not, and what is found of it, is a beginning of that log, which ends
once and does not change any more; 35 what was deleted is found no more; 36 all of them end; 37 no
client's stream gives way to a reader that has no client.

Of the market and the plans that follow it (oracle_market.py): 22 no plan costs more than the
budget, and no order takes what the plan has above it; 23 no offer that said no is asked again, or
named to placement, before its time, as far as the present controller has heard; 24 what serves goes
by the plan, one formation at a time, and the last only where whatever may come needs its nodes; 25
a plan that is chosen says why, and an operator who asks is told what came of it; 26 a pipeline that
two plans have in common goes on untouched, and none counts as such whose node was bought of another
offer than the newer one names; 27 nothing is improved within the cool-down, and when nothing
happens any more at most CHANGES_AT_REST plans are chosen; 28 at rest nothing runs that the plan has
no place for, or that waits for the seat of a node that stays, and the controller's books agree with
the provider's; 29 no plan comes back behind a newer one; 30 advice is no notice: who is likely to
go serves until somebody who holds its stage follows, and somebody does where one is to be had.
"""

from __future__ import annotations

from typing import Any

from oracle_departures import DepartureOracle
from oracle_generations import GenerationOracle

from services.common.exchange import Checkpoint, Grant, ResumeQuestion
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import Outcome
from services.controller.core.ledger.records import Granted, HeadBound

ROUTES_LATE_S = 1.0
"""A router may go by routes that were so long ago."""


class Oracle(GenerationOracle, DepartureOracle):
    """Watches one world."""

    def granted(self, ledger: Ledger, question: ResumeQuestion, outcome: Outcome[Grant]) -> None:
        """The ledger answered a Resume."""
        super().granted(ledger, question, outcome)
        for record in outcome.records:
            if isinstance(record, Granted) and outcome.events[0].attributes["planned"] == "true":
                self.moved(record.generation_id)
            if isinstance(record, Granted) and record.formation_id:
                self.begins(record.generation_id, record.formation_id)

    def checkpoint(
        self, ledger: Ledger, checkpoint: Checkpoint, outcome: Outcome[Any], before: Any
    ) -> None:
        """The ledger answered a checkpoint."""
        super().checkpoint(ledger, checkpoint, outcome, before)
        for record in outcome.records:
            if isinstance(record, HeadBound):
                name, formation_id = record.generation_id, record.formation_id
                self.begins(name, formation_id, late_s=ROUTES_LATE_S)

    def check_moves(self, faults: int) -> None:
        """Nothing moves but for a fault, a plan, or a client that was away."""
        drains = sum(kind == "handover_started" for _, kind, _ in self.events)
        self.check_grants(faults, drains if self.plans else 0)
