"""What lies in one S3 bucket below a prefix: its client, its keys, and calls that are tried again.

Credentials come from boto3's own chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from services.common import s3_calls
from services.common.errors import InvalidArgument, NotFound, Unavailable
from services.common.s3_calls import attempts, limit_s, translated
from services.common.s3_connections import in_time, watch_connections

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5
CONNECTIONS = 32


class S3Bucket:
    """Calls go to `client`, with `name` as bucket, by `tried`."""

    def __init__(self, uri: str, endpoint_url: str | None = None) -> None:
        """Raises InvalidArgument for a URI that is not s3://bucket or s3://bucket/prefix."""
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise InvalidArgument("the URI must be s3://bucket/prefix", field="store")
        self.name = parts.netloc
        self._prefix = parts.path.strip("/")
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=s3_calls.READ_TIMEOUT_S,
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            self.client: Any = boto3.session.Session().client(
                "s3", endpoint_url=endpoint_url, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise InvalidArgument(f"S3: {str(error)[:200]}", field="store") from None
        watch_connections(self.client)

    def key(self, rest: str) -> str:
        """A key below the prefix."""
        return f"{self._prefix}/{rest}" if self._prefix else rest

    def tried(self, call: Callable[[], T], what: str, size_bytes: int = 0) -> T:
        """What the call answers, which moves so many bytes; it fails in passing a few times at
        most. Raises domain errors."""
        for attempt in attempts(size_bytes):
            with attempt, translated(what), in_time(limit_s(size_bytes), what):
                return call()
        raise Unavailable(f"S3 gave no answer at {what}")

    def listed(self, prefix: str) -> Iterator[Any]:
        """Objects whose keys begin so, in their order, as S3 describes them."""
        token: str | None = None
        while True:
            more = {"ContinuationToken": token} if token else {}
            answer = self.tried(
                lambda more=more: self.client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self.name, Prefix=prefix, **more
                ),
                prefix,
            )
            yield from answer.get("Contents", ())
            token = answer.get("NextContinuationToken")
            if not token:
                return

    def end_uploads(self, prefix: str, before_s: float) -> int:
        """Takes back uploads of such keys that were begun before this time and never completed;
        how many."""
        ended = 0
        for item in self._uploads(prefix):
            started: datetime = item["Initiated"]
            if started.timestamp() < before_s:
                target = {"Bucket": self.name, "Key": item["Key"], "UploadId": item["UploadId"]}
                with suppress(NotFound):
                    self.tried(
                        lambda target=target: self.client.abort_multipart_upload(**target),  # type: ignore[misc]
                        prefix,
                    )
                    ended += 1
        return ended

    def _uploads(self, prefix: str) -> Iterator[Any]:
        more: dict[str, str] = {}
        while True:
            answer = self.tried(
                lambda more=more: self.client.list_multipart_uploads(  # type: ignore[misc]
                    Bucket=self.name, Prefix=prefix, **more
                ),
                prefix,
            )
            yield from answer.get("Uploads", ())
            if not answer.get("IsTruncated"):
                return
            more = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }
