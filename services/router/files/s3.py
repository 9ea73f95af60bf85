"""S3 as place. What is written goes up in parts as it comes; completing them gives it its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from services.common.errors import DataLoss, NotFound, ShuntError, Unavailable
from services.common.s3_bucket import S3Bucket
from services.common.s3_calls import closed_unless_read, received_of

PART_BYTES = 8 << 20
"""Of an upload; S3 takes none below 5 MiB but the last."""


class S3Place:
    """Objects below a prefix; routers anywhere share it."""

    def __init__(self, uri: str, endpoint_url: str | None = None) -> None:
        """Raises InvalidArgument for a URI that is not s3://bucket or s3://bucket/prefix."""
        self._place = S3Bucket(uri, endpoint_url)

    def writer(self, name: str) -> S3Writer:
        return S3Writer(self._place, name)

    def size(self, name: str) -> int | None:
        place = self._place
        target = {"Bucket": place.name, "Key": place.key(name)}
        try:
            return int(
                place.tried(lambda: place.client.head_object(**target), name)["ContentLength"]
            )
        except NotFound:
            return None

    def read(self, name: str, start: int, stop: int) -> bytes:
        place = self._place
        if start >= stop:
            return b""

        def once() -> bytes:
            answer = place.client.get_object(
                Bucket=place.name, Key=place.key(name), Range=f"bytes={start}-{stop - 1}"
            )
            with closed_unless_read(answer["Body"]):
                size_bytes = int(answer["ContentLength"])
                return b"".join(received_of(answer["Body"], size_bytes, name))

        try:
            return place.tried(once, name, stop - start)
        except NotFound:
            raise NotFound(f"{name} is not kept", field="file_id") from None
        except DataLoss:  # what S3 says of a range behind the end
            return b""

    def delete(self, name: str) -> None:
        place = self._place
        target = {"Bucket": place.name, "Key": place.key(name)}
        place.tried(lambda: place.client.delete_object(**target), name)

    def names(self, folder: str) -> Iterator[tuple[str, float]]:
        place, root = self._place, self._place.key("")
        for item in place.listed(place.key(f"{folder}/")):
            yield item["Key"].removeprefix(root), item["LastModified"].timestamp()

    def sweep(self, before_s: float) -> None:
        self._place.end_uploads(self._place.key(""), before_s)


class S3Writer:
    """One upload; it begins with its first full part, and what is smaller is put at once."""

    def __init__(self, place: S3Bucket, name: str) -> None:
        self._place = place
        self._name = name
        self._target = {"Bucket": place.name, "Key": place.key(name)}
        self._waiting = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._upload: dict[str, Any] = {}
        self._size_bytes = 0
        self._done = False

    def write(self, data: bytes) -> None:
        self._waiting += data
        self._size_bytes += len(data)
        while len(self._waiting) >= PART_BYTES:
            self._send(bytes(self._waiting[:PART_BYTES]))
            del self._waiting[:PART_BYTES]

    def commit(self) -> None:
        place, rest = self._place, bytes(self._waiting)
        if not self._parts:
            place.tried(
                lambda: place.client.put_object(**self._target, Body=rest), self._name, len(rest)
            )
        else:
            if rest:
                self._send(rest)
            self._complete()
        self._waiting.clear()
        self._done = True

    def abort(self) -> None:
        if self._upload and not self._done:
            place, upload = self._place, {**self._target, **self._upload}
            with suppress(ShuntError):  # what cannot be taken back now is swept later
                place.tried(lambda: place.client.abort_multipart_upload(**upload), self._name)

    def _send(self, part: bytes) -> None:
        place = self._place
        if not self._upload:
            made = place.tried(
                lambda: place.client.create_multipart_upload(**self._target), self._name
            )
            self._upload = {"UploadId": made["UploadId"]}
        number = len(self._parts) + 1
        answer = place.tried(
            lambda: place.client.upload_part(
                **self._target, **self._upload, PartNumber=number, Body=part
            ),
            self._name,
            len(part),
        )
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})

    def _complete(self) -> None:
        place, parts = self._place, {"Parts": self._parts}
        try:
            place.tried(
                lambda: place.client.complete_multipart_upload(
                    **self._target, **self._upload, MultipartUpload=parts
                ),
                self._name,
                self._size_bytes,
            )
        except NotFound:
            # A completion that is repeated, for its first answer was lost, finds the upload gone.
            found = place.tried(lambda: place.client.head_object(**self._target), self._name)
            if found["ContentLength"] != self._size_bytes:
                raise Unavailable(f"{self._name} did not arrive whole", field="files") from None
