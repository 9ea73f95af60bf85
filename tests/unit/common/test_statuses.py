from __future__ import annotations

import grpc
import pytest

from services.common import errors, statuses


class _FailedCall(grpc.RpcError):
    """What a client sees of a status."""

    def __init__(self, status: grpc.Status) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return self._status.details

    def trailing_metadata(self) -> object:
        return self._status.trailing_metadata


def _kinds() -> list[type[errors.ShuntError]]:
    found: list[type[errors.ShuntError]] = []
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ShuntError):
            found.append(kind)
    return [k for k in found if k not in (errors.ShuntError, errors.Diverged)]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda k: k.__name__)
def test_every_domain_error_crosses_the_wire_as_itself(kind: type[errors.ShuntError]) -> None:
    sent = kind("max_tokens is 9 and the limit is 8", field="max_tokens")
    got = statuses.from_rpc_error(_FailedCall(statuses.to_status(sent)))
    assert type(got) is kind
    assert (got.message, got.field) == (sent.message, "max_tokens")


def test_a_divergence_keeps_its_position_but_not_the_ids() -> None:
    status = statuses.to_status(errors.Diverged(17, 4242, 4343))
    got = statuses.from_rpc_error(_FailedCall(status))
    assert isinstance(got, errors.Diverged)
    assert got.position == 17
    assert "4242" not in status.details


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.ResourceExhausted])
def test_what_passes_says_when_to_try_again(
    kind: type[errors.Unavailable] | type[errors.ResourceExhausted],
) -> None:
    sent = kind("no pipeline is ready", retry_after_s=2.5)
    got = statuses.from_rpc_error(_FailedCall(statuses.to_status(sent)))
    assert isinstance(got, kind)
    assert got.retry_after_s == 2.5


def test_a_status_without_details_still_has_a_kind() -> None:
    class Bare(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.RESOURCE_EXHAUSTED

        def details(self) -> str:
            return "too big"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    assert type(statuses.from_rpc_error(Bare())) is errors.ResourceExhausted


def test_a_message_echoes_a_bounded_part_of_the_input() -> None:
    assert len(errors.InvalidArgument("x" * 10_000).message) <= 400
