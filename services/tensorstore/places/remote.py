"""A tensor store service as seen by engines and by the stores of other nodes.

The calls are synchronous: they run in the threads that fill caches, and in processes whose event
loop is somebody else's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb
from shuntserve.tensorstore.v1 import tensorstore_pb2_grpc as rpc

from services.common import channel_options, mesh_token, renewal
from services.common.certificate_files import Pem, files_at
from services.common.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ShuntError,
    Unavailable,
)
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.tensorstore.cache.residence import HeldFile, Progress
from services.tensorstore.format.manifest import MANIFEST_LIMIT_BYTES
from services.tensorstore.format.slices import Selection
from services.tensorstore.places.backend import Pieces, digest_of

CALL_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
OPEN_TIMEOUT_S = 3600.0
_DATA_TAG = b"\x0a"  # field 1, length-delimited
_MESSAGE_LIMIT_BYTES = MANIFEST_LIMIT_BYTES + (1 << 20)
_TLS_FILES = ("SHUNT_TLS_CERTIFICATE", "SHUNT_TLS_KEY", "SHUNT_TLS_AUTHORITY")


def own_certificate() -> Pem | None:
    """The newest that SHUNT_TLS_* names; None where it names no file.

    The kit's settings are not read here, for this module loads inside foreign processes too.
    Raises FailedPrecondition when only some files are named.
    """
    paths = [os.environ.get(name, "") for name in _TLS_FILES]
    if not any(paths):
        return None
    for name, path in zip(_TLS_FILES, paths, strict=True):
        if not path:
            raise FailedPrecondition(f"{name}: TLS needs certificate, key and authority")
    return files_at(*(Path(path) for path in paths)).newest()


def open_channel(address: str, role: Role) -> grpc.Channel:
    """A channel to host:port, by mutual TLS where there is a certificate to show, to who shows one
    of that role; else calls show the mesh's token. Raises FailedPrecondition like
    `own_certificate`."""
    shown = own_certificate()
    chosen = channel_options.options(_MESSAGE_LIMIT_BYTES)
    if shown is None:
        return mesh_token.present(grpc.insecure_channel(address, options=chosen))
    credentials = grpc.ssl_channel_credentials(shown.authority, shown.key, shown.certificate)
    expected = channel_options.expecting(role, shown.certificate)
    return grpc.secure_channel(address, credentials, options=[*chosen, *expected])


class RemoteReader:
    """Reads objects of a store through its service; safe to use from several threads."""

    def __init__(
        self,
        address: str,
        role: Role,
        *,
        cached_only: bool = False,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        """`role` is whose certificate the service shows. With `cached_only` the other node fetches
        nothing: it sends what it holds."""
        self._address = address
        self._role = role
        self._timeout_s = timeout_s
        self._cached_only = cached_only
        self._connect()

    def _connect(self) -> None:
        """Calls on the channel before, if there is one, are left alone."""
        self._shown = own_certificate()
        self._channel = open_channel(self._address, self._role)
        self._opened_s = time.monotonic()
        self._stub: Any = rpc.TensorStoreServiceStub(self._channel)
        self._read: Any = self._channel.unary_stream(
            "/shuntserve.tensorstore.v1.TensorStoreService/Read",
            request_serializer=pb.ReadRequest.SerializeToString,
            response_deserializer=frame_of,
        )

    def _look(self) -> None:
        """Before every call: it shows the newest certificate."""
        if self._shown is not own_certificate():
            self._connect()

    def failure(self, error: grpc.RpcError) -> ShuntError:
        """What a failed call raises. Where the service is away, the next call looks it up anew: the
        channel that failed would do so less and less often."""
        failure = from_rpc_error(error)
        old = time.monotonic() - self._opened_s >= renewal.RENEWAL_INTERVAL_S
        if isinstance(failure, Unavailable) and old:
            self._connect()
        return failure

    def names(self) -> list[str]:
        answer = self._call("List", pb.ListRequest())
        return sorted(model.model.model_id for model in answer.models)

    def resolve(self, name: str) -> str | None:
        reference = common_pb2.ModelRef(model_id=name)
        try:
            answer = self._call("Describe", pb.DescribeRequest(model=reference))
        except NotFound:
            return None
        return str(answer.summary.model.digest)

    def size(self, digest: str) -> int | None:
        """Only manifests are ever asked for their size."""
        reference = common_pb2.ModelRef(digest=digest)
        try:
            answer = self._call("Describe", pb.DescribeRequest(model=reference))
        except NotFound:
            return None
        if digest_of(answer.manifest) != digest:
            raise DataLoss(f"manifest {digest} is damaged", field="digest")
        return len(answer.manifest)

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        if start == stop:  # a file beside the weights may be empty, a Read may not
            return
        request = pb.ReadRequest(
            digest=digest, start=start, length=stop - start, cached_only=self._cached_only
        )
        self._look()
        call = self._read(request, timeout=self._timeout_s)
        try:
            for data in call:
                start += len(data)
                if start > stop:
                    raise DataLoss(f"object {digest}: more was sent than asked for")
                yield data
        except grpc.RpcError as error:
            raise self.failure(error) from None
        finally:
            call.cancel()
        if start != stop:
            raise DataLoss(f"object {digest} broke off at {start}", field="digest")

    def close(self) -> None:
        self._channel.close()

    def open(self, selection: Selection) -> Any:
        """The call that brings a slice to the node and holds it there while it lasts."""
        wanted = pb.Slice(
            model=common_pb2.ModelRef(digest=selection.digest),
            layers=common_pb2.LayerRange(start=selection.start, end=selection.end),
            tp_degree=selection.degree,
            tp_rank=selection.rank,
        )
        self._look()
        return self._stub.Open(pb.OpenRequest(slice=wanted), timeout=OPEN_TIMEOUT_S)

    def _call(self, method: str, request: Any) -> Any:
        self._look()
        try:
            return getattr(self._stub, method)(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self.failure(error) from None


def frame_of(message: bytes) -> memoryview:
    """The data of a ReadResponse without the copies that parsing makes; weights are many bytes."""
    size, shift, at = 0, 0, 1
    while at < min(len(message), 6):
        size |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 0x80:
            break
    if message[:1] == _DATA_TAG and size == len(message) - at:
        return memoryview(message)[at:]
    return memoryview(pb.ReadResponse.FromString(message).data)


class RemoteResidence:
    """The files of the service's node, for engines on the same one."""

    def __init__(self, reader: RemoteReader) -> None:
        self._reader = reader

    @contextmanager
    def hold(self, selection: Selection, progress: Progress | None) -> Iterator[list[HeldFile]]:
        call = self._reader.open(selection)
        try:
            try:
                opened = _opened(call, selection, progress)
            except grpc.RpcError as error:
                raise self._reader.failure(error) from None
            yield opened
            if not call.is_active():
                raise Aborted("the store ended the call before all was mapped", field="slice")
        finally:
            call.cancel()


def _opened(call: Any, selection: Selection, progress: Progress | None) -> list[HeldFile]:
    for answer in call:
        if answer.HasField("progress"):
            if progress is not None:
                progress(answer.progress.done_bytes, answer.progress.total_bytes)
            continue
        opened = answer.opened
        chunks = [selection.manifest.chunks[wanted.chunk] for wanted in selection.ranges]
        if (
            opened.digest != selection.digest
            or [path.rpartition("/")[2] for path in opened.paths] != [c.digest for c in chunks]
            or len(opened.inodes) != len(chunks)
        ):
            raise DataLoss("the store opened something else", field="slice")
        return [
            HeldFile(path, inode, chunk.size_bytes)
            for path, inode, chunk in zip(opened.paths, opened.inodes, chunks, strict=True)
        ]
    raise Unavailable("the store ended the call", field="slice")
