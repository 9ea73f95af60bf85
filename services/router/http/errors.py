"""Domain errors as HTTP answers in OpenAI's shape; the one table between them."""

from __future__ import annotations

import json
import re
from math import ceil

from services.common import errors
from services.router.ask import ContextOverflow
from services.router.held import Expired


class HttpError(errors.ShuntError):
    """A refusal that only HTTP knows."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


_STATUSES: dict[type[errors.ShuntError], int] = {
    errors.InvalidArgument: 400,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.FailedPrecondition: 409,
    errors.ModelUnusable: 500,
    errors.OutOfRange: 409,
    errors.PermissionDenied: 403,
    errors.Unauthenticated: 401,
    errors.ResourceExhausted: 429,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 503,
    errors.Cancelled: 409,
    errors.Aborted: 409,
    Expired: 410,
}
MEANINGS = {
    400: "What was sent cannot be right; `param` names it.",
    401: "No key, or none that is known here.",
    403: "Not for this caller.",
    404: "No such route, model or generation.",
    408: "The body took too long.",
    409: "It contradicts what is held, or it was cancelled.",
    410: "No longer kept.",
    413: "The body is too large.",
    415: "The body is no JSON, or is encoded.",
    429: "Too much at once.",
    431: "The headers are too large.",
    500: "The router failed, or holders disagree.",
    503: "Nobody can take it now.",
}
"""What each status of an error says."""
_PARAMS = {"choices": "n", "stop_strings": "stop"}
"""Fields that HTTP clients know by another name."""


def status_of(error: errors.ShuntError) -> int:
    """The status of an error; 500 for what is nobody's fault but ours."""
    if isinstance(error, HttpError):
        return error.status
    return next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), 500)


def code_of(error: errors.ShuntError) -> str:
    """What programs tell errors apart by."""
    if isinstance(error, HttpError):
        return error.code
    if isinstance(error, errors.NotFound) and error.field == "model":
        return "model_not_found"
    if isinstance(error, ContextOverflow):
        return "context_length_exceeded"
    if isinstance(error, errors.ResourceExhausted):
        return "rate_limit_exceeded"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()


def body_of(error: errors.ShuntError) -> bytes:
    """{"error": {"message", "type", "param", "code"}}."""
    return json.dumps({"error": fields_of(error)}, ensure_ascii=False).encode()


def fields_of(error: errors.ShuntError) -> dict[str, str | None]:
    """Message, type, param and code."""
    status, param, message = status_of(error), error.field, error.message
    if param in _PARAMS:
        param, message = _PARAMS[param], re.sub(rf"\b{param}\b", _PARAMS[param], message)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {
        "message": message,
        "type": "rate_limit_error" if status == 429 else kind,
        "param": param or None,
        "code": code_of(error),
    }


def is_worth_no_retry(error: errors.ShuntError) -> bool:
    """Clients try again by themselves what has this status, and it would be in vain."""
    status = status_of(error)
    return error.permanent and (status in (408, 409, 429) or status >= 500)


def retry_after_s(error: errors.ShuntError) -> int | None:
    """Whole seconds after which asking again may help."""
    if isinstance(error, errors.ResourceExhausted | errors.Unavailable):
        return max(1, ceil(error.retry_after_s))
    return 1 if status_of(error) in (429, 503) else None


def retry_headers(error: errors.ShuntError) -> dict[str, str]:
    """When asking again may help: in whole seconds for everybody, exactly for SDKs that look for
    that first."""
    seconds = retry_after_s(error)
    if seconds is None:
        return {}
    exact_s: float = getattr(error, "retry_after_s", seconds)
    return {"retry-after": str(seconds), "retry-after-ms": str(max(1, round(1000 * exact_s)))}
