"""One reader of one generation: what its follower asks, what its transcript tells, and the load
that its streams are to their pipelines, tied together."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import DataLoss, ResourceExhausted, ShuntError
from services.common.exchange import Frame, GenerationView, ResumeQuestion
from services.router.core.actions import Action, AskResume, CloseStream, Deliver, End, OpenStream
from services.router.core.balancer import Balancer
from services.router.core.follower import Follower
from services.router.core.hearing import Hearing
from services.router.core.transcript import Transcript


class Reading:
    """What the follower asks goes through `perform`, which answers with what is left for the edge:
    every action in order, once, End as the last."""

    def __init__(
        self,
        follower: Follower,
        transcript: Transcript,
        balancer: Balancer,
        hearing: Hearing,
        *,
        max_unread_bytes: int,
    ) -> None:
        self.follower = follower
        self.transcript = transcript
        self.ended = False
        self.error: ShuntError | None = None
        """Set with `ended`, when it did not end well."""
        self.overruled = False
        """It has not ended as its ids say."""
        self.writing = False
        """The edge waits for its client to take something."""
        self._balancer = balancer
        self._hearing = hearing
        self._max_unread_bytes = max_unread_bytes
        self._streams: dict[int, str] = {}
        """The formation of each open stream, where it counts as one that runs."""

    @property
    def owes_usage(self) -> bool:
        """The generation ended well, and its client was not told usage before. Only then is there
        an end to name: one that came back may end before its ids are here."""
        return self.ended and self.error is None and not self.transcript.told_end

    def rejoin(self, view: GenerationView, now_s: float) -> list[Action]:
        """A generation that another reader began."""
        caught_up = self.perform([Deliver(())])
        return [*caught_up, *self.perform(self.follower.rejoin(view, now_s))]

    def tick(self, now_s: float) -> list[Action]:
        """Lets the follower see the time, and whether its head serves."""
        route = self.follower.route
        formation_id = route.formation_id if route is not None else ""
        serves = route is not None and self._balancer.serves(formation_id)
        silent_s = self._hearing.silent_s(formation_id)
        return self.perform(self.follower.tick(now_s, serves=serves, silent_s=silent_s))

    def frame(self, stream: int, frame: Frame, now_s: float) -> list[Action]:
        """What a frame of its head comes to, yet to be performed."""
        if stream in self._streams:
            self._hearing.hears(self._streams[stream])
        return self.follower.frame(stream, frame, now_s)

    def fail(self, error: ShuntError) -> list[Action]:
        """Ends this reader; the generation stays resumable."""
        return [] if self.ended else self.perform([*self.follower.detach(), End(error)])

    def left_alone(self) -> ResumeQuestion | None:
        """Its last head serves no more: what has the controller keep the end that it told; None
        while the head can tell it itself."""
        route = self.follower.route
        if route is None or self._balancer.serves(route.formation_id):
            return None
        return self.follower.last_question()

    def overrule(self, error: ShuntError) -> None:
        """What ended well by its ids has not, for those that keep it."""
        self.overruled, self.error = True, error

    def close(self, *, resumable: bool) -> list[Action]:
        """The client is gone. A generation that it can resume goes on, and parks when nobody comes
        back; another one parks at once."""
        actions = self.perform(self.follower.client_gone(resumable))
        self._leave_all()
        return actions

    def pause(self) -> list[Action]:
        """The client takes nothing; what it has not taken is kept."""
        return [] if self.ended else self.perform(self.follower.pause())

    def is_open(self, stream: int) -> bool:
        """Somebody waits for its frames."""
        return stream in self._streams

    def left(self, stream: int) -> None:
        """The stream has ended, or nobody waits for it any more; to be told any number of times."""
        formation_id = self._streams.pop(stream, None)
        if formation_id is not None:
            self._balancer.ended(formation_id)

    def perform(self, actions: Sequence[Action]) -> list[Action]:
        """Does what can be done here."""
        waiting, mine = list(actions), []
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Deliver):
                waiting = [*self._deliver(), *waiting]
            elif isinstance(action, OpenStream):
                if self.ended:
                    continue
                # Counted before the next request picks its pipeline.
                self._balancer.began(action.route.formation_id)
                self._streams[action.stream] = action.route.formation_id
            elif isinstance(action, CloseStream):
                self.left(action.stream)
            elif isinstance(action, AskResume | End) and self.ended:
                continue
            elif isinstance(action, End):
                self._end(action.error)
            mine.append(action)
        return mine

    def _deliver(self) -> list[Action]:
        try:
            stopped = self.transcript.advance()
        except ShuntError as error:
            return [*self.follower.detach(), End(error)]
        unread = self.transcript.waiting_bytes if self.writing else 0
        if unread > self._max_unread_bytes:
            slow = ResourceExhausted("the client reads too slowly; it can resume")
            return [*self.follower.detach(), End(slow)]
        return [a for choice, length in stopped for a in self.follower.stopped(choice, length)]

    def _end(self, error: ShuntError | None) -> None:
        self.ended, self.error = True, error
        self._leave_all()
        if error is None and not (self.transcript.finished and self.transcript.caught_up):
            self.error = DataLoss("the generation ended before its text did")

    def _leave_all(self) -> None:
        for stream in list(self._streams):
            self.left(stream)
