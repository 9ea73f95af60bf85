"""What an item means to a store that speaks SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    HeadBound,
    IdsAppended,
    Inexact,
    Kept,
    Record,
)
from services.controller.journal.groups import Statement
from services.controller.journal.journal import Item, LoggedEvent, Outlived, Saved
from services.controller.journal.rows import kept_row, row_of, with_checksum


@dataclass(frozen=True, slots=True)
class Dialect:
    """The statements of one store; each takes a row or a key in the order of the columns."""

    insert: str
    forget: str
    keep: str
    drop_kept: str
    outlive: str
    """Drops what is kept since before a time."""
    outlive_most: str
    """Drops the oldest of more than so many that are kept."""
    event: str
    drop_events: str
    save: str
    unsave: str
    join: Callable[[str, int], Sequence[Statement]]
    """Makes one row, of this number, of the appends of a generation's epoch."""


class Statements:
    """Translates items, and numbers the rows of records."""

    def __init__(
        self,
        dialect: Dialect,
        *,
        last_number: int,
        events_kept: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self._dialect = dialect
        self._events_kept = events_kept
        self._wall_clock = wall_clock
        self.last_number = last_number
        """The highest number that was given to a row."""

    def of(self, item: Item) -> Sequence[Statement]:
        """Those that store an item."""
        said = self._dialect
        if isinstance(item, IdsAppended):  # by far the most
            return (self._inserted(item),)
        if isinstance(item, LoggedEvent):
            attributes = json.dumps(dict(item.attributes))
            about = (item.node_id, item.pipeline_id, item.generation_id, attributes, item.plan)
            return (
                (said.event, with_checksum(item.number, item.time_unix_s, item.kind, *about)),
                (said.drop_events, (item.number - self._events_kept,)),
            )
        if isinstance(item, Saved):
            if item.value is None:
                return ((said.unsave, (item.key,)),)
            return ((said.save, with_checksum(item.key, item.value)),)
        if isinstance(item, Forgotten):
            name = (item.generation_id,)
            return (said.forget, name), (said.drop_kept, name)
        if isinstance(item, Kept):
            row = kept_row(self._wall_clock(), item)
            return (said.forget, (item.generation_id,)), (said.keep, row)
        if isinstance(item, Outlived):
            return (said.outlive, (item.before_unix_s,)), (said.outlive_most, (item.at_most,))
        of_choice = isinstance(item, Ended) and item.choice is not None
        if of_choice or isinstance(item, HeadBound | Inexact):
            return (self._inserted(item),)
        joined = said.join(item.generation_id, self._number())  # its epoch is over
        return (*joined, self._inserted(item))

    def _inserted(self, record: Record) -> Statement:
        return self._dialect.insert, row_of(self._number(), self._wall_clock(), record)

    def _number(self) -> int:
        self.last_number += 1
        return self.last_number
