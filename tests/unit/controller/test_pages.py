from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument
from services.controller.pages import DEFAULT_PAGE_SIZE, LISTS, MAX_PAGE_SIZE, page

IDS = {
    "nodes": [f"node-{number}" for number in range(12, 0, -1)],
    "pipelines": ["pipeline-2", "pipeline-1"],
    "generations": ["g/2", "g/1", "g/3"],
}


def read_all(ids: dict[str, list[str]], size: int) -> tuple[list[str], int]:
    """Every id in the order it came, and how many pages there were."""
    token, found, pages = "", list[str](), 0
    while True:
        one = page(ids, size, token)
        pages += 1
        found += [name for listed in LISTS for name in one.ids[listed]]
        assert sum(map(len, one.ids.values())) <= size
        if not one.next_token:
            return found, pages
        token = one.next_token


@pytest.mark.parametrize(("size", "pages"), [(1, 17), (5, 4), (12, 2), (16, 2), (17, 1), (18, 1)])
def test_all_pages_have_everything_once_in_order(size: int, pages: int) -> None:
    wanted = [f"node-{number}" for number in range(1, 13)]
    wanted += ["pipeline-1", "pipeline-2", "g/1", "g/2", "g/3"]
    assert read_all(IDS, size) == (wanted, pages)


def test_a_page_goes_on_behind_an_id_that_is_gone() -> None:
    first = page(IDS, 3, "")
    assert first.next_token == "nodes/node-3"
    left = {**IDS, "nodes": ["node-2", "node-4", "node-20"]}
    assert page(left, 2, first.next_token).ids["nodes"] == ["node-4", "node-20"]


def test_a_page_has_a_size_though_none_was_named() -> None:
    many = {**IDS, "nodes": [str(number) for number in range(2 * MAX_PAGE_SIZE)]}
    assert len(page(many, 0, "").ids["nodes"]) == DEFAULT_PAGE_SIZE
    assert len(page(many, MAX_PAGE_SIZE, "").ids["nodes"]) == MAX_PAGE_SIZE
    with pytest.raises(InvalidArgument, match=f"at most {MAX_PAGE_SIZE}") as error:
        page(many, MAX_PAGE_SIZE + 1, "")
    assert error.value.field == "page_size"


@pytest.mark.parametrize("token", ["nodes", "nodes/", "/node-1", "offers/a", "nodes/" + "a" * 2000])
def test_a_token_that_no_page_gave_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        page(IDS, 0, token)
    assert error.value.field == "page_token"


def test_nothing_is_one_page() -> None:
    assert page({listed: [] for listed in LISTS}, 10, "").next_token == ""
