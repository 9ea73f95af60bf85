"""Kinds of notices, as messages have them and back."""

from __future__ import annotations

from shuntserve.common.v1 import common_pb2

from services.common.notices import NoticeKind

_TO = {
    NoticeKind.SPOT: common_pb2.NOTICE_KIND_SPOT,
    NoticeKind.REBALANCE: common_pb2.NOTICE_KIND_REBALANCE,
    NoticeKind.SHUTDOWN: common_pb2.NOTICE_KIND_SHUTDOWN,
    NoticeKind.OPERATOR: common_pb2.NOTICE_KIND_OPERATOR,
}
_FROM = {number: kind for kind, number in _TO.items()}


def notice_to(kind: NoticeKind | None) -> common_pb2.NoticeKind.ValueType:
    return common_pb2.NOTICE_KIND_UNSPECIFIED if kind is None else _TO[kind]


def notice_from(number: common_pb2.NoticeKind.ValueType) -> NoticeKind | None:
    """None for a kind of a later version, too: nothing is known of it here."""
    return _FROM.get(number)
