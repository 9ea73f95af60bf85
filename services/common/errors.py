"""The whole error tree. Starred: permanent, asking the same again is of no use until something
else has changed.

ShuntError
├── InvalidArgument*      the caller sent something that can never work; names the field
├── NotFound              no such thing
├── AlreadyExists*        the name is taken by something else
├── FailedPrecondition*   fine in itself, but not in this state; names what is missing
│   └── ModelUnusable*    what is to be served cannot be, whoever asks
├── OutOfRange*           past the end of what there is
├── PermissionDenied      not yours
├── Unauthenticated       nobody knows who you are
├── ResourceExhausted     a limit of size or number, perhaps until retry_after_s have passed
├── Unavailable           not now; try again, perhaps after retry_after_s
├── DeadlineExceeded      there was not enough time
├── Cancelled*            ended on request
├── DataLoss              bytes that are not what they should be
├── Aborted               lost against somebody newer
│   ├── StaleEpoch        an epoch, incarnation or formation that no longer counts
│   └── Superseded        a newer reader took over
└── Diverged              two holders of one position disagree
"""

from __future__ import annotations

from typing import ClassVar

ECHO_LIMIT_CHARS = 200


class ShuntError(Exception):
    """Root of every error raised on purpose; `field` names what it is about, `retry_after_s` says
    when what passes may have passed."""

    permanent: ClassVar[bool] = False
    """Asking the same again is of no use until something else has changed."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message[: ECHO_LIMIT_CHARS * 2])
        self.message = message[: ECHO_LIMIT_CHARS * 2]
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidArgument(ShuntError):
    """The caller sent something that can never work."""

    permanent = True


class NotFound(ShuntError):
    """No such thing."""


class AlreadyExists(ShuntError):
    """The name is taken by something else."""

    permanent = True


class FailedPrecondition(ShuntError):
    """Not possible in this state."""

    permanent = True


class ModelUnusable(FailedPrecondition):
    """What is to be served cannot be, whoever asks."""


class OutOfRange(ShuntError):
    """Past the end of what there is."""

    permanent = True


class PermissionDenied(ShuntError):
    """The caller may not do this."""


class Unauthenticated(ShuntError):
    """The caller did not say who it is."""


class ResourceExhausted(ShuntError):
    """A limit of size or number was reached."""


class Unavailable(ShuntError):
    """Not now."""


class DeadlineExceeded(ShuntError):
    """There was not enough time."""


class Cancelled(ShuntError):
    """Ended on request."""

    permanent = True


class DataLoss(ShuntError):
    """Bytes that are not what they should be."""


class Aborted(ShuntError):
    """Lost against somebody newer."""


class StaleEpoch(Aborted):
    """An epoch, incarnation or formation that no longer counts."""


class Superseded(Aborted):
    """A newer reader took over."""


class Diverged(ShuntError):
    """Two holders of one position disagree: nothing is overwritten, nothing is merged."""

    def __init__(self, position: int, held: int, got: int, *, field: str = "") -> None:
        super().__init__(f"position {position} holds another id than was sent", field=field)
        self.position = position
        self.held = held
        self.got = got
