from __future__ import annotations

import pytest

from services.common.errors import PermissionDenied, Unavailable
from services.controller.processes import Processes


def test_a_process_is_the_nodes_that_registered_it() -> None:
    processes = Processes()
    processes.registered("a", "1")
    processes.registered("a", "1")
    processes.check("a", "1")
    with pytest.raises(PermissionDenied, match="node b alone") as refused:
        processes.check("b", "1")
    assert refused.value.field == "incarnation"
    with pytest.raises(PermissionDenied) as refused:
        processes.registered("b", "1")
    assert refused.value.field == "incarnation"
    processes.check("a", "1")


def test_a_process_that_nobody_registered_is_asked_to_come_again() -> None:
    with pytest.raises(Unavailable):
        Processes().check("a", "1")


def test_a_node_goes_on_with_another_process_while_the_last_words_of_the_old_one_count() -> None:
    processes = Processes()
    processes.registered("a", "1")
    processes.registered("a", "2")
    processes.check("a", "1")
    processes.check("a", "2")


def test_what_was_silent_for_longest_is_forgotten_first() -> None:
    processes = Processes(limit=2)
    for incarnation in ("1", "2", "1", "3"):
        processes.registered("a", incarnation)
    processes.check("a", "1")
    processes.check("a", "3")
    with pytest.raises(Unavailable):
        processes.check("a", "2")
