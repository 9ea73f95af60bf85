from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer, check
from services.controller.providers.market_file import MarketScript, read_market

WHOLE = """
offers:
  - {id: spot-a, instance_type: big, count: 3, price_per_hour: 0.4, pool: a, spot: true,
     interruptions_per_hour: 0.2, relative_speed: 3, memory_bytes: 1000, launch_s: 1.5}
  - {id: small, count: 1, price_per_hour: 1}
events:
  - {at_s: 10, offer: spot-a, count: 0}
  - {at_s: 10, offer: small, price_per_hour: 2.5}
  - {at_s: 20, offer: spot-a, take: 2, notice_s: 0}
  - {at_s: 30, offer: small, take: 1}
"""


def read(tmp_path: Path, text: str) -> MarketScript:
    path = tmp_path / "market.yaml"
    path.write_text(text)
    return read_market(path, memory_bytes=77, device_type="cpu")


def test_a_market_is_read_with_its_events_in_order(tmp_path: Path) -> None:
    script = read(tmp_path, WHOLE)
    assert script.offers == (
        Offer(
            "spot-a",
            "big",
            NodeShape(1000, 3.0),
            count=3,
            price_per_hour=0.4,
            pool="a",
            spot=True,
            interruptions_per_hour=0.2,
            launch_s=1.5,
            declared=True,
        ),
        Offer(
            "small",
            "small",
            NodeShape(77, 1.0),
            count=1,
            price_per_hour=1.0,
            pool="local",
            declared=True,
        ),
    )
    assert [
        (event.at_s, event.offer_id, event.count, event.price_per_hour, event.take)
        for event in script.events
    ] == [
        (10, "spot-a", 0, None, 0),
        (10, "small", None, 2.5, 0),
        (20, "spot-a", None, None, 2),
        (30, "small", None, None, 1),
    ]
    assert [event.notice_s for event in script.events[2:]] == [0.0, 120.0]
    for offer in script.offers:
        check(offer)


def test_its_digest_is_that_of_what_it_says(tmp_path: Path) -> None:
    one = read(tmp_path, WHOLE)
    assert read(tmp_path, f"# a remark\n{WHOLE}") == one
    assert read(tmp_path, WHOLE.replace("0.4", "0.5")).digest != one.digest


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("price_per_hour: 0.4", "price_per_hour: .nan", "offers.0.price_per_hour: "),
        ("price_per_hour: 0.4", "price_per_hour: -1", "offers.0.price_per_hour: "),
        ("price_per_hour: 0.4", "price_per_hour: 0", "offers.0.price_per_hour: "),
        ("count: 3", "count: 10001", "offers.0.count: Input should be less than or equal to 10000"),
        ("count: 3", "count: -1", "offers.0.count: "),
        ("count: 3,", "", "offers.0.count: Field required"),
        ("launch_s: 1.5", "launch_s: 601", "offers.0.launch_s: "),
        ("launch_s: 1.5", "launch: 1", "offers.0.launch: Extra inputs"),
        ("interruptions_per_hour: 0.2", "interruptions_per_hour: -1", "interruptions_per_hour: "),
        ("relative_speed: 3", "relative_speed: 0", "offers.0.relative_speed: "),
        ("memory_bytes: 1000", "memory_bytes: 0", "offers.0.memory_bytes: "),
        ("id: small", "id: spot-a", "offers.1.id: another offer is called spot-a"),
        ("id: small", "id: 'a b'", "offers.1.id: "),
        ("at_s: 20", "at_s: -1", "events.2.at_s: "),
        ("at_s: 20", "at_s: .inf", "events.2.at_s: "),
        ("at_s: 20", "at_s: 9", "events.2.at_s: 9 goes backwards: the event before it is at 10"),
        ("offer: spot-a, take", "offer: spot-b, take", "events.2.offer: no offer is called spot-b"),
        ("take: 2, notice_s: 0", "", "events.2: an event has one of count"),
        ("take: 2,", "take: 2, count: 1,", "events.2: an event has one of count"),
        ("take: 2, notice_s: 0", "take: 0", "events.2.take: "),
        ("notice_s: 0", "notice_s: 90000", "events.2.notice_s: "),
        ("count: 0}", "count: 0, notice_s: 3}", "events.0: notice_s goes with take"),
        ("offers:", "offer:", "offers: Field required"),
    ],
)
def test_what_is_wrong_names_file_entry_and_field(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    assert WHOLE.count(before) == 1 or before == "offers:"
    with pytest.raises(InvalidArgument) as refused:
        read(tmp_path, WHOLE.replace(before, after))
    assert refused.value.message.startswith("market.yaml: "), refused.value.message
    assert told in refused.value.message


def test_a_market_of_too_many_offers_or_of_none_is_refused(tmp_path: Path) -> None:
    row = "  - {{id: o{}, count: 1, price_per_hour: 1}}\n"
    for count in (0, 1001):
        many = "".join(row.format(number) for number in range(count)) or "  []"
        with pytest.raises(InvalidArgument, match="offers: "):
            read(tmp_path, f"offers:\n{many}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.yaml"):
        read_market(tmp_path / "none.yaml", memory_bytes=1, device_type="cpu")


def test_a_speed_is_launched_in_the_shape_of_its_cheapest_offer(tmp_path: Path) -> None:
    script = read(
        tmp_path,
        """
offers:
  - {id: dear, count: 1, price_per_hour: 2, relative_speed: 3, memory_bytes: 10}
  - {id: demand, count: 1, price_per_hour: 1, relative_speed: 3, memory_bytes: 20}
  - {id: spot, count: 1, price_per_hour: 1, relative_speed: 3, memory_bytes: 30, spot: true}
  - {id: two, count: 1, price_per_hour: 1, relative_speed: 2}
""",
    )
    assert script.shapes([(3.0, "native"), (2.0, "native"), (3.0, "native")]) == (
        NodeShape(30, 3.0),
        NodeShape(77, 2.0),
        NodeShape(30, 3.0),
    )
    with pytest.raises(InvalidArgument, match=r"market\.yaml: no offer has the relative_speed 4 "):
        script.shapes([(3.0, "native"), (4.0, "native")])


def test_a_backend_is_launched_from_an_offer_of_it(tmp_path: Path) -> None:
    text = """
offers:
  - {id: cheap, count: 1, price_per_hour: 1, relative_speed: 3}
  - {id: other, count: 1, price_per_hour: 2, relative_speed: 3, backend: vllm}
"""
    script = read(tmp_path, text)
    assert [offer.shape.backend for offer in script.offers] == ["native", "vllm"]
    assert [s.backend for s in script.shapes([(3.0, "vllm"), (3.0, "native")])] == [
        "vllm",
        "native",
    ]
    unsaid = read_market(tmp_path / "market.yaml", memory_bytes=1, device_type="x", backend="vllm")
    assert {offer.shape.backend for offer in unsaid.offers} == {"vllm"}
    with pytest.raises(InvalidArgument, match="of relative_speed 3 has the backend native"):
        unsaid.shapes([(3.0, "native")])
    with pytest.raises(InvalidArgument, match=r"offers\.1\.backend: Input should be 'native' or"):
        read(tmp_path, text.replace("backend: vllm", "backend: tgi"))


def test_what_is_offered_at_most_counts_each_offer_at_its_best_time(tmp_path: Path) -> None:
    script = read(tmp_path, WHOLE + "  - {at_s: 40, offer: small, count: 7}\n")
    assert script.most_by_speed() == {3.0: 3, 1.0: 7}
    none = read(tmp_path, "offers: [{id: a, count: 0, price_per_hour: 1}]")
    assert none.most_by_speed() == {}
