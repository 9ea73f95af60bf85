"""Files of a service are mapped only while it holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb

from services.common.errors import Aborted, DataLoss
from services.tensorstore.remote import RemoteResidence
from services.tensorstore.residence import LocalResidence
from services.tensorstore.slices import Selection


class Call:
    """What Open returns: one answer; active or ended by the service."""

    def __init__(self, answer: pb.OpenResponse, *, active: bool = True) -> None:
        self.answer, self.active = answer, active

    def __iter__(self) -> Iterator[pb.OpenResponse]:
        return iter([self.answer])

    def is_active(self) -> bool:
        return self.active

    def cancel(self) -> None:
        self.active = False


class Reader:
    def __init__(self, call: Call) -> None:
        self.call = call

    def open(self, _: Selection) -> Call:
        return self.call


@pytest.fixture
def selection(tiny) -> Selection:
    return Selection.of(tiny.imported.digest, tiny.imported.manifest, 0, 3)


@pytest.fixture
def opened(tiny, selection: Selection) -> pb.OpenedSlice:
    with LocalResidence(tiny.root).hold(selection, None) as files:
        return pb.OpenedSlice(
            digest=selection.digest,
            paths=[file.path for file in files],
            inodes=[file.inode for file in files],
        )


def residence(opened: pb.OpenedSlice, **more: Any) -> RemoteResidence:
    return RemoteResidence(Reader(Call(pb.OpenResponse(opened=opened), **more)))  # type: ignore


def test_the_files_carry_the_inodes_that_were_verified(
    tiny, selection: Selection, opened: pb.OpenedSlice
) -> None:
    with (
        residence(opened).hold(selection, None) as files,
        LocalResidence(tiny.root).hold(selection, None) as local,
    ):
        assert files == local


def test_a_hold_that_ended_too_early_is_told(selection: Selection, opened: pb.OpenedSlice) -> None:
    with (
        pytest.raises(Aborted, match="ended"),
        residence(opened, active=False).hold(selection, None),
    ):
        pass


def test_another_answer_than_the_slice_is_data_loss(
    selection: Selection, opened: pb.OpenedSlice
) -> None:
    del opened.inodes[0]
    with pytest.raises(DataLoss, match="something else"), residence(opened).hold(selection, None):
        pass
