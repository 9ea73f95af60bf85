"""The small files of a model, read from the tensor store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import grpc
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import wire
from services.common.errors import DataLoss, FailedPrecondition
from services.common.generation import ModelRef
from services.common.statuses import from_rpc_error
from services.model.text import FILES

_READ_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's configuration and the files that tokenise for it."""

    ref: ModelRef
    config: dict[str, Any]
    files: dict[str, bytes]


class TensorStore:
    """Reads over one channel; every call has the same deadline."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float, max_file_bytes: int) -> None:
        self._stub = tensorstore_pb2_grpc.TensorStoreServiceStub(channel)
        self._timeout_s = timeout_s
        self._max_file_bytes = max_file_bytes

    async def files(self, ref: ModelRef) -> ModelFiles:
        """Raises NotFound, Unavailable, DataLoss, FailedPrecondition."""
        try:
            described = await self._stub.Describe(
                tensorstore_pb2.DescribeRequest(model=wire.model_to(ref)), timeout=self._timeout_s
            )
            manifest = json.loads(described.manifest)
            files = {
                name: await self._read(name, entry["digest"], entry["size"])
                for name, entry in manifest["files"].items()
                if name in FILES
            }
            config = manifest["config"]
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataLoss("the store's manifest is not understood") from error
        return ModelFiles(ref, config, files)

    async def _read(self, name: str, digest: str, size: int) -> bytes:
        if size > self._max_file_bytes:
            raise FailedPrecondition(f"{name} has {size} bytes, over {self._max_file_bytes}")
        data = bytearray()
        while len(data) < size:
            before = len(data)
            length = min(_READ_BYTES, size - before)
            request = tensorstore_pb2.ReadRequest(digest=digest, start=before, length=length)
            call = self._stub.Read(request, timeout=self._timeout_s)
            try:
                async for message in call:
                    data += message.data
            finally:
                call.cancel()
            if not before < len(data) <= before + length:
                raise DataLoss(f"{name}: {len(data) - before} bytes came, not {length}")
        return bytes(data)
