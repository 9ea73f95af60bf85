"""S3 as backend: the same tree as a directory's, below a prefix.

Ranges are read in parallel by the caller's threads. Every read carries If-Match with the ETag
seen first, so an object that is replaced in mid-read is noticed; what fails in passing is tried
again with growing waits. No answer outlasts its time, not even from a server that sends a byte now
and then.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from s3transfer.utils import ReadFileChunk

from services.common.errors import (
    DataLoss,
    NotFound,
    PermissionDenied,
    ShuntError,
)
from services.common.s3_bucket import S3Bucket
from services.common.s3_calls import (
    attempts,
    closed_unless_read,
    limit_s,
    received_of,
    translated,
)
from services.common.s3_connections import in_time
from services.tensorstore.format.names import (
    check_digest,
    check_model_name,
    is_digest,
    is_model_name,
)
from services.tensorstore.places.backend import Pieces, StoredObject
from services.tensorstore.places.directory import pointer_digest, remove_older, translate

T = TypeVar("T")

PART_BYTES = 16 << 20
MAX_PARTS = 10_000
COPY_LIMIT_BYTES = 5 << 30
PART_THREADS = 8  # of one upload
POINTER_BYTES = 100


class S3Backend:
    """Credentials come from boto3's own chain."""

    def __init__(self, uri: str, endpoint_url: str | None = None) -> None:
        """Raises InvalidArgument for a URI that is not s3://bucket or s3://bucket/prefix."""
        self._place = S3Bucket(uri, endpoint_url)
        self._client, self._bucket = self._place.client, self._place.name
        self._etags: dict[str, str] = {}

    def size(self, digest: str) -> int | None:
        found = self.stat(digest)
        return None if found is None else found.size_bytes

    def stat(self, digest: str) -> StoredObject | None:
        try:
            found = self._try(lambda: self._head(digest), digest)
        except NotFound:
            return None
        return StoredObject(digest, int(found["ContentLength"]), found["LastModified"].timestamp())

    def touch(self, digest: str, size_bytes: int, older_s: float) -> bool:
        found = self.stat(digest)
        if found is None or found.size_bytes != size_bytes:
            return False
        if time.time() - found.modified_s > older_s:
            if size_bytes > COPY_LIMIT_BYTES:
                return False
            try:
                self._renew(digest, size_bytes)
            except NotFound:
                return False
        return True

    def put(self, digest: str, source: Path) -> None:
        size_bytes = source.stat().st_size
        if size_bytes <= 2 * PART_BYTES:
            self._put_object(digest, source, size_bytes)
        else:
            self._put_parts(digest, source, size_bytes)
        self._etags.pop(digest, None)
        if self.size(digest) != size_bytes:
            raise DataLoss(f"object {digest} did not arrive whole", field="digest")

    def _put_object(self, digest: str, source: Path, size_bytes: int) -> None:
        key = self._object_key(digest)

        def send() -> None:
            with _part(source, 0, size_bytes) as body:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=body)

        self._try(send, digest, size_bytes)

    def _put_parts(self, digest: str, source: Path, size_bytes: int) -> None:
        target = {"Bucket": self._bucket, "Key": self._object_key(digest)}
        upload = self._try(lambda: self._client.create_multipart_upload(**target), digest)
        target["UploadId"] = upload["UploadId"]

        def send(number: int) -> dict[str, Any]:
            start = (number - 1) * part_bytes
            length = min(part_bytes, size_bytes - start)

            def once() -> Any:
                with _part(source, start, length) as body:
                    return self._client.upload_part(**target, PartNumber=number, Body=body)

            return {"ETag": self._try(once, digest, length)["ETag"], "PartNumber": number}

        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
        numbers = range(1, -(-size_bytes // part_bytes) + 1)
        pool = ThreadPoolExecutor(PART_THREADS, "upload")
        try:
            parts = {"Parts": list(pool.map(send, numbers))}
            # a repeated completion finds the upload gone: whether all is there is asked afterwards
            with suppress(NotFound):
                self._try(
                    lambda: self._client.complete_multipart_upload(**target, MultipartUpload=parts),
                    digest,
                    size_bytes,
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            with suppress(ShuntError):  # what cannot be taken back now is swept later
                self._try(lambda: self._client.abort_multipart_upload(**target), digest)
            raise
        finally:
            pool.shutdown()

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        try:
            for attempt in attempts(stop - start):
                with (
                    attempt,
                    translated(digest),
                    closing(self._range(digest, start, stop)) as received,
                ):
                    for piece in received:
                        start += len(piece)  # another attempt goes on from there
                        yield memoryview(piece)
        except DataLoss:
            self._etags.pop(digest, None)
            raise

    def _range(self, digest: str, start: int, stop: int) -> Generator[bytes, None, None]:
        """One attempt; what fails is tried again by the caller, the question for the ETag too."""
        etag = self._etags.get(digest) or str(self._head(digest)["ETag"])
        if start == stop:
            return
        with in_time(limit_s(), digest) as awaited:
            answer = self._client.get_object(
                Bucket=self._bucket,
                Key=self._object_key(digest),
                Range=f"bytes={start}-{stop - 1}",
                IfMatch=etag,
            )
            awaited.body = answer["Body"]
        with closed_unless_read(answer["Body"]):
            placed = str(answer.get("ContentRange", "")).rpartition("/")[0]
            if placed != f"bytes {start}-{stop - 1}":
                raise DataLoss(f"object {digest}: another range was sent", field="digest")
            yield from received_of(answer["Body"], stop - start, digest)

    def delete(self, digest: str) -> None:
        self._etags.pop(digest, None)
        key = self._object_key(digest)
        self._try(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), digest)

    def objects(self) -> Iterator[StoredObject]:
        for item in self._place.listed(self._key("objects/")):
            digest = item["Key"].rpartition("/")[2]
            if is_digest(digest):
                yield StoredObject(digest, item["Size"], item["LastModified"].timestamp())

    def resolve(self, name: str) -> str | None:
        key = self._key(f"models/{check_model_name(name)}")

        def read() -> bytes:
            answer = self._client.get_object(
                Bucket=self._bucket, Key=key, Range=f"bytes=0-{POINTER_BYTES - 1}"
            )
            with closed_unless_read(answer["Body"]):
                return b"".join(received_of(answer["Body"], int(answer["ContentLength"]), name))

        try:
            return pointer_digest(name, self._try(read, name))
        except NotFound:
            return None

    def publish(self, name: str, digest: str) -> None:
        key, body = self._key(f"models/{check_model_name(name)}"), check_digest(digest).encode()
        self._try(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=body), name)

    def withdraw(self, name: str) -> bool:
        key = self._key(f"models/{check_model_name(name)}")
        try:  # an entry that is damaged is there too
            self._try(lambda: self._client.head_object(Bucket=self._bucket, Key=key), name)
        except NotFound:
            return False
        self._try(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), name)
        return True

    def names(self) -> list[str]:
        prefix = self._key("models/")
        found = (item["Key"].removeprefix(prefix) for item in self._place.listed(prefix))
        return sorted(filter(is_model_name, found))

    def scratch(self) -> Path:
        """Below TMPDIR, and nobody else's: what is uploaded is read from there."""
        path = Path(tempfile.gettempdir()) / f"shunt-{os.geteuid()}"
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            if path.lstat().st_uid != os.geteuid():
                raise PermissionDenied(f"{path} belongs to somebody else", field="store")
        except OSError as error:
            raise translate(error) from None
        return path

    def sweep(self, before_s: float) -> int:
        """Scratch files, and uploads that were begun and never completed."""
        swept = remove_older(self.scratch(), before_s)
        return swept + self._place.end_uploads(self._key("objects/"), before_s)

    def _renew(self, digest: str, size_bytes: int) -> None:
        """Copies an object onto itself; S3 allows that when the metadata are replaced."""
        ours = {"Bucket": self._bucket, "Key": self._object_key(digest)}
        self._try(
            lambda: self._client.copy_object(**ours, CopySource=ours, MetadataDirective="REPLACE"),
            digest,
            size_bytes,
        )
        self._etags.pop(digest, None)  # parts that became one have another

    def _head(self, digest: str) -> Any:
        """One attempt; the ETag is remembered."""
        with in_time(limit_s(), digest):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._object_key(digest))
        self._etags[digest] = str(answer["ETag"])
        return answer

    def _try(self, call: Callable[[], T], what: str, size_bytes: int = 0) -> T:
        return self._place.tried(call, what, size_bytes)

    def _object_key(self, digest: str) -> str:
        return self._key(f"objects/{check_digest(digest)[:2]}/{digest}")

    def _key(self, rest: str) -> str:
        return self._place.key(rest)


def _part(source: Path, start: int, length: int) -> Any:
    """A window of a file as body of a request, read as it is sent."""
    return ReadFileChunk.from_filename(str(source), start, length)
