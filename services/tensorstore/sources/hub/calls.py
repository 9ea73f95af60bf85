"""One request to a hub: tried again when it fails in passing, and what it failed of as an error of
ours, each with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from services.common.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ShuntError,
    Unavailable,
)
from services.tensorstore.places.directory import translate

ATTEMPTS = 4
WAIT_S, MOST_WAIT_S = 1.0, 15.0
"""Between attempts, on average at first and at most; the library has retries of its own in each."""
_SHOWN_CHARS = 120
T = TypeVar("T")


def tried(call: Callable[[], T]) -> T:
    """What the call returns; asked again where it raises Unavailable or DataLoss."""
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=WAIT_S, max=MOST_WAIT_S),
        retry=retry_if_exception_type((Unavailable, DataLoss)),
        reraise=True,
    )(call)


@contextmanager
def told(repository: str, revision: str, file: str = "") -> Iterator[None]:
    """Raises NotFound, PermissionDenied, Unavailable, InvalidArgument, or what the disk says."""
    where = f"{repository}@{revision[:12]}" + (f": {file}" if file else "")
    try:
        yield
    except ShuntError:
        raise
    except OfflineModeIsEnabled:
        raise Unavailable("HF_HUB_OFFLINE is set: the hub is not asked", field="source") from None
    except HFValidationError as error:
        raise InvalidArgument(f"source: {_shown(error)}", field="source") from None
    except HfHubHTTPError as error:
        raise _answered(error, repository, revision, where) from None
    except httpx2.UnsupportedProtocol:
        raise InvalidArgument(
            "HF_ENDPOINT is no address of a hub: https://HOST", field="endpoint"
        ) from None
    except httpx2.HTTPError as error:
        raise _broken(where, error) from None
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise translate(error) from None
        raise _broken(where, error) from None


def _answered(error: HfHubHTTPError, repository: str, revision: str, where: str) -> ShuntError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return PermissionDenied(
            f"{where} is gated: accept its terms on the hub, and set HF_TOKEN to a token of the"
            " account that did",
            field="token",
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"{repository} has no revision {revision}", field="revision")
    if isinstance(error, RepositoryNotFoundError):  # also where nobody is to know of it
        return NotFound(
            f"the hub answers {status}: it has no {repository}, or shows it only to others: set"
            " HF_TOKEN to a token that may read it",
            field="source",
        )
    if status in (401, 403):
        return PermissionDenied(
            f"the hub answers {status} to {where}: set HF_TOKEN to a token that may read it",
            field="token",
        )
    if status == 404:
        return NotFound(f"the hub has no {where}", field="source")
    return Unavailable(f"the hub answers {status} to {where}; try again later", field="source")


def _broken(where: str, error: Exception) -> Unavailable:
    return Unavailable(
        f"the hub breaks off at {where} ({type(error).__name__}: {_shown(error)}): the same command"
        " goes on where it stopped",
        field="source",
    )


def _shown(error: Exception) -> str:
    return ascii(str(error))[1:-1][:_SHOWN_CHARS]
