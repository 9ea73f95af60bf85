import pytest
from shuntserve.common.v1 import common_pb2

from services.common.notices import NoticeKind
from services.common.wire_notices import notice_from, notice_to


@pytest.mark.parametrize("kind", [None, *NoticeKind])
def test_a_kind_comes_back_as_it_was(kind: NoticeKind | None) -> None:
    assert notice_from(notice_to(kind)) is kind


def test_every_kind_of_the_api_is_known() -> None:
    known = {notice_to(kind) for kind in (None, *NoticeKind)}
    assert known == set(common_pb2.NoticeKind.values())


def test_of_a_kind_of_a_later_version_nothing_is_known() -> None:
    assert notice_from(99) is None
