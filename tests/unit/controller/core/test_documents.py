"""Documents: versions, loans, order, bounds, and what a restart makes of their notes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.common.documents import Document
from services.common.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    StaleEpoch,
)
from services.controller.core.documents import Documents, DocumentSettings, note_of

SETTINGS = DocumentSettings(lease_s=10.0)


def put(documents: Documents, document: Document, *, holds_lease: bool = False) -> Document:
    kept = documents.put(document, holds_lease=holds_lease)
    documents.keep(kept)
    return kept.document


def claim(documents: Documents, now_s: float, unix_s: float = 100.0) -> Document | None:
    kept = documents.claim(("batch",), now_s, unix_s)
    if kept is None:
        return None
    documents.keep(kept)
    documents.lend(kept.document, now_s)
    return kept.document


def batch(name: str, tenant: str = "t", due_unix_s: float | None = 1.0) -> Document:
    return Document("batch", name, tenant, "{}", due_unix_s=due_unix_s)


def test_of_two_that_change_a_version_one_has() -> None:
    documents = Documents(SETTINGS)
    first = put(documents, batch("a"))
    second = put(documents, replace(first, body="{1}"))
    assert (first.version, second.version) == (1, 2)
    with pytest.raises(Aborted, match="version 2, not 1"):
        documents.put(replace(first, body="{2}"), holds_lease=False)
    assert documents.get("batch", "a").body == "{1}"


def test_a_name_is_given_once() -> None:
    documents = Documents(SETTINGS)
    put(documents, batch("a"))
    with pytest.raises(AlreadyExists):
        documents.put(batch("a"), holds_lease=False)
    with pytest.raises(NotFound):
        documents.put(replace(batch("b"), version=3), holds_lease=False)


def test_a_loan_is_one_holders_until_it_ends() -> None:
    documents = Documents(SETTINGS)
    put(documents, batch("a"))
    first = claim(documents, 0.0)
    assert first is not None
    assert first.lease == 1
    assert claim(documents, 9.0) is None
    documents.renew("batch", "a", 1, 9.0, give_back=False)
    assert claim(documents, 18.0) is None
    second = claim(documents, 19.0)
    assert second is not None
    assert second.lease == 2
    with pytest.raises(StaleEpoch):
        documents.renew("batch", "a", 1, 19.0, give_back=False)
    with pytest.raises(StaleEpoch):
        documents.put(first, holds_lease=True)
    assert put(documents, second, holds_lease=True).version == 2


def test_what_is_given_back_is_lent_at_once() -> None:
    documents = Documents(SETTINGS)
    put(documents, batch("a"))
    assert claim(documents, 0.0) is not None
    documents.renew("batch", "a", 1, 1.0, give_back=True)
    second = claim(documents, 1.0)
    assert second is not None
    assert second.lease == 2


def test_only_what_is_due_is_lent() -> None:
    documents = Documents(SETTINGS)
    first = put(documents, batch("a", due_unix_s=200.0))
    assert claim(documents, 0.0, 199.0) is None
    put(documents, replace(first, due_unix_s=300.0))
    assert claim(documents, 0.0, 250.0) is None
    assert claim(documents, 0.0, 300.0) is not None
    put(documents, replace(documents.get("batch", "a"), due_unix_s=None))
    assert claim(documents, 99.0, 400.0) is None


def test_a_tenant_with_many_keeps_nobody_waiting() -> None:
    documents = Documents(SETTINGS)
    for name in "abc":
        put(documents, batch(name, "many"))
    put(documents, batch("z", "one", due_unix_s=50.0))
    lent = [claim(documents, 0.0) for _ in range(4)]
    assert [one.document_id for one in lent if one] == ["a", "z", "b", "c"]


def test_pages_go_from_the_newest_to_the_oldest_or_back() -> None:
    documents = Documents(SETTINGS)
    for name in "abcde":
        put(documents, batch(name))
    put(documents, batch("x", "other"))

    def walk(oldest_first: bool) -> list[str]:
        found: list[str] = []
        more = True
        while more:
            after = found[-1] if found else ""
            page, more = documents.page("batch", "t", after, 2, oldest_first=oldest_first)
            found += [one.document_id for one in page]
        return found

    put(documents, replace(documents.get("batch", "b"), body="{9}"))  # keeps its place
    assert walk(oldest_first=False) == ["e", "d", "c", "b", "a"]
    assert walk(oldest_first=True) == ["a", "b", "c", "d", "e"]
    with pytest.raises(NotFound):
        documents.page("batch", "t", "x", 2, oldest_first=False)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (Document("Batch", "a", "t", "{}"), "kind"),
        (Document("batch", "a/b", "t", "{}"), "document_id"),
        (Document("batch", "", "t", "{}"), "document_id"),
        (Document("batch", "a", "t" * 257, "{}"), "tenant"),
        (Document("batch", "a", "t", "x" * (256 * 1024 + 1)), "body"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_field(document: Document, named: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        Documents(SETTINGS).put(document, holds_lease=False)
    assert refusal.value.field == named


def test_there_is_a_bound_on_number_and_size() -> None:
    documents = Documents(DocumentSettings(max_documents=2, max_chars=10))
    first = put(documents, replace(batch("a", ""), body="12345"))
    put(documents, replace(batch("b", ""), body="12345"))
    with pytest.raises(ResourceExhausted, match="at most 2, and 2 in all"):
        documents.put(batch("c", ""), holds_lease=False)
    with pytest.raises(ResourceExhausted, match="at most 10, and 10 in all"):
        documents.put(replace(first, body="123456"), holds_lease=False)
    documents.forget(("batch", "b"))
    put(documents, replace(first, body="123456"))


def test_one_tenant_leaves_the_others_half() -> None:
    documents = Documents(DocumentSettings(max_documents=4, max_chars=20))
    for name in "ab":
        put(documents, replace(batch(name, "many"), body="12345"))
    with pytest.raises(ResourceExhausted, match="2 documents of this tenant"):
        documents.put(batch("c", "many"), holds_lease=False)
    changed = replace(documents.get("batch", "a"), body="123456")
    with pytest.raises(ResourceExhausted, match="10 characters, of at most 10"):
        documents.put(changed, holds_lease=False)
    for name in "de":
        put(documents, replace(batch(name, "few"), body="12345"))


def test_a_damaged_note_is_not_passed_over() -> None:
    with pytest.raises(DataLoss, match="document/batch/a"):
        Documents.recover(SETTINGS, {"document/batch/a": "{}"}, 0.0)


class Restarts(RuleBasedStateMachine):
    """A controller that restarts at any moment knows what one that never did would know."""

    def __init__(self) -> None:
        super().__init__()
        self.documents = Documents(SETTINGS)
        self.notes: dict[str, str] = {"plan": "another's"}
        self.holders: dict[str, int] = {}
        self.now_s = 0.0

    names = st.sampled_from(["a", "b", "c"])

    def _keep(self, kept: object) -> None:
        key, value = kept.note  # type: ignore[attr-defined]
        self.notes[key] = value
        self.documents.keep(kept)  # type: ignore[arg-type]

    @rule(name=names, due=st.sampled_from([None, 5.0, 500.0]))
    def change(self, name: str, due: float | None) -> None:
        try:
            before = self.documents.get("batch", name)
        except NotFound:
            before = batch(name)
        body = f"{before.version}"
        changed = replace(before, body=body, due_unix_s=due)
        self._keep(self.documents.put(changed, holds_lease=False))

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.documents.forget(("batch", name))
        self.holders.pop(name, None)
        self.notes.pop(note_of(("batch", name)), None)

    @rule()
    def lend(self) -> None:
        kept = self.documents.claim(("batch",), self.now_s, 100.0)
        if kept is not None:
            name = kept.document.document_id
            assert kept.document.lease > self.holders.get(name, 0)
            self.holders[name] = kept.document.lease
            self._keep(kept)
            self.documents.lend(kept.document, self.now_s)

    @rule(passed=st.floats(0, 20))
    def wait(self, passed: float) -> None:
        self.now_s += passed

    @rule()
    def restart(self) -> None:
        self.documents = Documents.recover(SETTINGS, self.notes, self.now_s)

    @invariant()
    def the_notes_say_all(self) -> None:
        again = Documents.recover(SETTINGS, self.notes, self.now_s)
        for oldest_first in (True, False):
            pages = [
                one.page("batch", "t", "", 1000, oldest_first=oldest_first)
                for one in (self.documents, again)
            ]
            assert pages[0] == pages[1]


Restarts.TestCase.settings = hypothesis_settings(max_examples=40, stateful_step_count=25)
TestRestarts = Restarts.TestCase
