"""S3 as backend: the same tree as a directory's, below a prefix.

Ranges are read in parallel by the caller's threads. Every read carries If-Match with the ETag
seen first, so an object that is replaced in mid-read is noticed; what fails in passing is tried
again with growing waits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import HTTPError

from services.common.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ShuntError,
    Unavailable,
)
from services.tensorstore.backend import PIECE_BYTES, Pieces, StoredObject
from services.tensorstore.directory import pointer_digest
from services.tensorstore.names import check_digest, check_model_name

T = TypeVar("T")

ATTEMPTS = 6
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
CONNECTIONS = 32
PART_BYTES = 16 << 20


class S3Backend:
    """Credentials come from boto3's own chain."""

    def __init__(self, uri: str, endpoint_url: str | None = None) -> None:
        """Raises InvalidArgument for a URI that is not s3://bucket or s3://bucket/prefix."""
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise InvalidArgument("the URI must be s3://bucket/prefix", field="store")
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        self._etags: dict[str, tuple[str, int]] = {}
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                max_pool_connections=CONNECTIONS,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def size(self, digest: str) -> int | None:
        try:
            return self._head(digest)[1]
        except NotFound:
            return None

    def put(self, digest: str, source: Path) -> None:
        size_bytes = source.stat().st_size
        if self.size(digest) == size_bytes:
            return
        key = self._object_key(digest)
        config = TransferConfig(multipart_threshold=PART_BYTES * 2, multipart_chunksize=PART_BYTES)
        self._try(
            lambda: self._client.upload_file(str(source), self._bucket, key, Config=config), digest
        )
        self._etags.pop(digest, None)
        if self.size(digest) != size_bytes:
            raise DataLoss(f"object {digest} did not arrive whole", field="digest")

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        try:
            for attempt in _attempts():
                with (
                    attempt,
                    _translated(digest),
                    closing(self._range(digest, start, stop)) as received,
                ):
                    for piece in received:
                        start += len(piece)  # another attempt goes on from there
                        yield memoryview(piece)
        except DataLoss:
            self._etags.pop(digest, None)
            raise

    def _range(self, digest: str, start: int, stop: int) -> Generator[bytes, None, None]:
        etag, _ = self._etags.get(digest) or self._head(digest)
        if start == stop:
            return
        answer = self._client.get_object(
            Bucket=self._bucket,
            Key=self._object_key(digest),
            Range=f"bytes={start}-{stop - 1}",
            IfMatch=etag,
        )
        body = answer["Body"]
        try:
            placed = str(answer.get("ContentRange", "")).rpartition("/")[0]
            if placed != f"bytes {start}-{stop - 1}":
                raise DataLoss(f"object {digest}: another range was sent", field="digest")
            yield from body.iter_chunks(PIECE_BYTES)
        except BaseException:
            body.close()  # what is left unread would spoil the connection for the next request
            raise

    def delete(self, digest: str) -> None:
        self._etags.pop(digest, None)
        key = self._object_key(digest)
        self._try(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), digest)

    def objects(self) -> Iterator[StoredObject]:
        for item in self._list(self._key("objects/")):
            digest = item["Key"].rpartition("/")[2]
            yield StoredObject(digest, item["Size"], item["LastModified"].timestamp())

    def resolve(self, name: str) -> str | None:
        key = self._key(f"models/{check_model_name(name)}")
        try:
            answer = self._try(
                lambda: self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read(100),
                name,
            )
        except NotFound:
            return None
        return pointer_digest(name, answer)

    def publish(self, name: str, digest: str) -> None:
        key, body = self._key(f"models/{check_model_name(name)}"), check_digest(digest).encode()
        self._try(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=body), name)

    def withdraw(self, name: str) -> bool:
        existed = self.resolve(name) is not None
        key = self._key(f"models/{name}")
        self._try(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), name)
        return existed

    def names(self) -> list[str]:
        prefix = self._key("models/")
        return sorted(item["Key"].removeprefix(prefix) for item in self._list(prefix))

    def scratch(self) -> Path:
        return Path(tempfile.gettempdir())

    def _head(self, digest: str) -> tuple[str, int]:
        key = self._object_key(digest)
        answer = self._try(lambda: self._client.head_object(Bucket=self._bucket, Key=key), digest)
        found = (str(answer["ETag"]), int(answer["ContentLength"]))
        self._etags[digest] = found
        return found

    def _list(self, prefix: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            more = {"ContinuationToken": token} if token else {}
            answer = self._try(
                lambda more=more: self._client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self._bucket, Prefix=prefix, **more
                ),
                prefix,
            )
            yield from answer.get("Contents", ())
            token = answer.get("NextContinuationToken")
            if not token:
                return

    def _try(self, call: Callable[[], T], what: str) -> T:
        for attempt in _attempts():
            with attempt, _translated(what):
                return call()
        raise Unavailable(f"S3 gave no answer at {what}")

    def _object_key(self, digest: str) -> str:
        return self._key(f"objects/{check_digest(digest)[:2]}/{digest}")

    def _key(self, rest: str) -> str:
        return f"{self._prefix}/{rest}" if self._prefix else rest


def _attempts() -> Retrying:
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        retry=retry_if_exception_type(Unavailable),
        reraise=True,
    )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        raise _error(error, what) from None
    except (BotoCoreError, HTTPError, HTTPException, OSError) as error:
        raise Unavailable(f"S3: {type(error).__name__} at {what}", field="store") from None


def _error(error: ClientError, what: str) -> ShuntError:
    answer: Any = error.response
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in ("NoSuchKey", "NotFound", "404") or (status == 404 and code != "NoSuchBucket"):
        return NotFound(f"{what} is not in the store", field="digest")
    if status == 412:
        return DataLoss(f"{what} changed while it was read", field="digest")
    if status == 416:
        return DataLoss(f"{what} is shorter than the manifest says", field="digest")
    if status in (401, 403):
        return PermissionDenied(f"S3 refused: {code}", field="store")
    if status in (408, 429) or status >= 500:
        return Unavailable(f"S3 answered {status} {code}", field="store")
    return InvalidArgument(f"S3 answered {status} {code}", field="store")
