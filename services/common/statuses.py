"""The one table between domain errors and gRPC statuses, both ways."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common import errors

DOMAIN = "shuntserve"

_TABLE: dict[type[errors.ShuntError], int] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.ModelUnusable: code_pb2.FAILED_PRECONDITION,
    errors.OutOfRange: code_pb2.OUT_OF_RANGE,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.ResourceExhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    errors.Cancelled: code_pb2.CANCELLED,
    errors.DataLoss: code_pb2.DATA_LOSS,
    errors.Aborted: code_pb2.ABORTED,
    errors.StaleEpoch: code_pb2.ABORTED,
    errors.Superseded: code_pb2.ABORTED,
    errors.Diverged: code_pb2.DATA_LOSS,
}
_BY_REASON = {kind.__name__: kind for kind in _TABLE}
_BY_CODE: dict[grpc.StatusCode, type[errors.ShuntError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRange,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.DATA_LOSS: errors.DataLoss,
    grpc.StatusCode.ABORTED: errors.Aborted,
}


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def to_status(error: errors.ShuntError) -> grpc.Status:
    """The gRPC status of a domain error, with ErrorInfo and, where it helps, RetryInfo."""
    kind = next(k for k in type(error).__mro__ if k in _TABLE)
    info = error_details_pb2.ErrorInfo(reason=kind.__name__, domain=DOMAIN)
    if error.field:
        info.metadata["field"] = error.field
    if isinstance(error, errors.Diverged):
        info.metadata["position"] = str(error.position)
    details = [_packed(info)]
    if isinstance(error, errors.ResourceExhausted | errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=_TABLE[kind], message=error.message, details=details)
    rendered: grpc.Status = rpc_status.to_status(status)
    return rendered


def from_rpc_error(error: grpc.RpcError) -> errors.ShuntError:
    """The domain error behind a failed call; UNAVAILABLE for whatever the table does not name."""
    message = (error.details() if hasattr(error, "details") else str(error)) or "no details"
    info, retry_after_s = _details(error)
    field = info.metadata.get("field", "") if info else ""
    kind = _BY_REASON.get(info.reason) if info else None
    if kind is errors.Diverged and info is not None:
        return errors.Diverged(int(info.metadata.get("position", "0")), -1, -1, field=field)
    if kind is None:
        code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
        kind = _BY_CODE.get(code, errors.Unavailable)
    return kind(message, field=field, retry_after_s=retry_after_s)


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo | None, float]:
    trailers: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    info, retry_after_s = None, 1.0
    for key, value in trailers or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return info, retry_after_s


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: errors.ShuntError) -> None:
    """Ends an RPC with the status of a domain error; never returns."""
    status = to_status(error)
    await context.abort(status.code, status.details, tuple(status.trailing_metadata))
    raise asyncio.CancelledError
