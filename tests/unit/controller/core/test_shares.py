from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.demand import Shares, TenantDemand
from services.controller.core.shares import EVEN, LOST_AFTER_S, TenantShares


class Mesh:
    """Routers that report; answers and reports may be lost on the way."""

    def __init__(self, routers: int) -> None:
        self.shares = TenantShares()
        self.told = [Shares() for _ in range(routers)]
        self.requests = [0] * routers
        self.now_s = 0.0

    def share(self, router: int) -> float:
        """Who was told nothing yet serves nobody."""
        return self.told[router].of("acme") if self.told[router].routers else 0.0

    def report(self, router: int, requests: int = 0, *, heard: bool = True) -> None:
        self.requests[router] += requests
        demand = TenantDemand(self.requests[router], 0, self.told[router].of("acme"))
        answer = self.shares.reported(
            f"router-{router}", self.told[router].routers, {"acme": demand}, self.now_s
        )
        if heard:
            self.told[router] = answer

    def anew(self, known: bool = False) -> None:
        """Another controller leads, and knows which routers there were, or of none."""
        self.shares = TenantShares(self.shares.names if known else ())

    def join(self) -> int:
        """One more router comes, which was told nothing yet."""
        self.told.append(Shares())
        self.requests.append(0)
        return len(self.told)

    def round(self, *requests: int) -> None:
        for router, asked in enumerate(requests):
            self.report(router, asked)
        self.now_s += 2.0

    @property
    def total(self) -> float:
        return sum(self.share(router) for router in range(len(self.told)))


def test_one_router_has_all() -> None:
    mesh = Mesh(1)
    mesh.round(5)
    assert mesh.share(0) == 1.0


def test_who_is_asked_more_gets_more_and_everybody_some() -> None:
    mesh = Mesh(2)
    for _ in range(8):
        mesh.round(30, 10)
    assert abs(mesh.share(0) - (EVEN / 2 + (1 - EVEN) * 0.75)) < 0.02
    for _ in range(12):
        mesh.round(0, 50)
    assert mesh.share(1) > 0.85
    assert mesh.share(0) >= EVEN / 2 - 1e-9


def test_where_nobody_asks_each_has_an_equal_share() -> None:
    mesh = Mesh(4)
    for _ in range(4):
        mesh.round(0, 0, 0, 0)
    assert [round(mesh.share(router), 9) for router in range(4)] == [0.25] * 4


@given(
    st.integers(2, 5),
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 40), st.booleans(), st.integers(0, 9)),
        max_size=60,
    ),
)
def test_shares_come_to_one_at_most_whatever_is_lost_or_late_and_whoever_deals(
    routers: int, reports: list[tuple[int, int, bool, int]]
) -> None:
    mesh = Mesh(routers)
    for _ in range(3):
        mesh.round(*[0] * routers)
    for router, requests, heard, chance in reports:
        if chance == 9:
            mesh.anew()
        mesh.report(router % routers, requests, heard=heard)
        mesh.now_s += 0.1
        assert mesh.total <= 1 + 1e-9


def test_a_router_that_comes_is_given_a_part_at_once_and_an_equal_one_in_time() -> None:
    mesh = Mesh(2)
    for _ in range(4):
        mesh.report(0, 10)
        mesh.now_s += 2.0
    assert mesh.share(0) == 1.0
    mesh.report(1, 0)
    assert mesh.share(1) == EVEN / 2
    assert mesh.total <= 1 + EVEN / 2
    for _ in range(8):
        mesh.round(10, 10)
    assert mesh.total <= 1 + 1e-9
    assert abs(mesh.share(1) - 0.5) < 0.02


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 40), st.booleans(), st.integers(0, 11)),
        max_size=60,
    ),
)
def test_while_routers_come_shares_are_bounded_also_behind_a_controller_that_has_just_begun(
    routers: int, reports: list[tuple[int, int, bool, int]]
) -> None:
    """Each that comes adds a part of what is dealt out evenly until all others have heard of it."""
    mesh = Mesh(routers)
    for _ in range(4):
        mesh.round(*[0] * routers)
    more = 0.0
    for router, requests, heard, chance in reports:
        if chance in (9, 11):
            mesh.anew(known=True)
        if chance in (10, 11) and len(mesh.told) < 7:
            there = mesh.join()
            more += EVEN / there
            mesh.report(there - 1)
        mesh.report(router % len(mesh.told), requests, heard=heard)
        mesh.now_s += 0.1
        assert mesh.total <= 1 + more + 1e-9
        if {told.routers for told in mesh.told} == {len(mesh.told)}:
            more = 0.0
            assert mesh.total <= 1 + 1e-9


def test_a_router_that_comes_as_a_controller_begins_is_not_taken_to_be_the_only_one() -> None:
    mesh = Mesh(2)
    for _ in range(4):
        mesh.round(10, 10)
    mesh.anew(known=True)
    new = mesh.join() - 1
    mesh.report(new, 100)
    assert mesh.told[new].routers == 3
    assert mesh.share(new) == EVEN / 3
    assert mesh.total <= 1 + EVEN / 3
    for _ in range(8):
        mesh.round(10, 10, 10)
    assert all(abs(mesh.share(router) - 1 / 3) < 0.01 for router in range(3))
    assert mesh.total <= 1 + 1e-9


def test_where_all_begin_anew_under_their_names_each_has_its_part_at_once() -> None:
    mesh = Mesh(1)
    mesh.round(5)
    mesh.anew(known=True)
    mesh.told = [Shares()]
    mesh.report(0, 5)
    assert mesh.share(0) == 1.0


def test_who_was_there_and_does_not_come_back_counts_for_some_seconds_alone() -> None:
    mesh = Mesh(1)
    mesh.shares = TenantShares(["router-0", "gone"])
    mesh.report(0, 5)
    assert mesh.share(0) == EVEN / 2
    mesh.now_s += LOST_AFTER_S + 1
    mesh.report(0, 5)
    assert mesh.share(0) == 1.0
    assert mesh.shares.names == {"router-0"}


def test_what_a_lost_router_held_goes_to_the_others() -> None:
    mesh = Mesh(2)
    for _ in range(4):
        mesh.round(10, 10)
    mesh.now_s += LOST_AFTER_S + 1
    for _ in range(2):
        mesh.report(0, 10)
        mesh.now_s += 2.0
    assert mesh.share(0) == 1.0


def test_a_controller_that_is_new_gives_nobody_what_others_may_hold() -> None:
    mesh = Mesh(3)
    for _ in range(6):
        mesh.round(40, 10, 10)
    before = [mesh.share(router) for router in range(3)]
    mesh.shares = TenantShares()
    mesh.report(2, 100)
    assert mesh.told[2].routers == 3
    assert mesh.share(2) <= 1 - EVEN
    assert mesh.share(2) + before[0] + before[1] <= 2, "until the others have been heard"
    for _ in range(3):
        mesh.round(10, 10, 10)
    assert mesh.total <= 1 + 1e-9
