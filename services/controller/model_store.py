"""Asks the tensor store what the model is."""

from __future__ import annotations

import asyncio
import json
import logging

import grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import channels
from services.common.errors import DataLoss, InvalidArgument, NotFound, ShuntError
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.controller.core.model_facts import ModelFacts
from services.model.outline import outline_of

_log = logging.getLogger(__name__)

RETRY_S = 0.5


async def describe(
    address: str,
    model_id: str,
    *,
    digest: str = "",
    known: ModelFacts | None,
    timeout_s: float,
    tls: TlsSettings | None = None,
) -> ModelFacts:
    """The facts of a model, waiting for a store that is away or does not hold it yet.

    Of its versions it is the one with this digest, or without one the version known from before:
    what runs is not taken from its readers because somebody imported another one under its name.
    Only where none is known, or the store has it no more, it is the store's newest. With the facts
    known it waits for `timeout_s` only, then those stand. Raises what is permanent, and DataLoss.
    """
    same = known is not None and known.model_id == model_id and digest in ("", known.digest)
    fallback = known if same else None
    wanted = digest or (fallback.digest if fallback is not None else "")
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + timeout_s
    async with channels.open_channel(address, Role.TENSORSTORE, tls=tls) as channel:
        stub = tensorstore_pb2_grpc.TensorStoreServiceStub(channel)
        while True:
            model = common_pb2.ModelRef(model_id=model_id, digest=wanted)
            request = tensorstore_pb2.DescribeRequest(model=model)
            try:
                return facts_from(await stub.Describe(request, timeout=timeout_s))
            except grpc.RpcError as error:
                why: ShuntError = from_rpc_error(error)
            if isinstance(why, NotFound) and wanted and not digest:
                _log.warning("the version that ran is gone from the store", extra={"was": wanted})
                wanted, fallback = "", None
                continue
            if why.permanent:
                raise why
            if fallback is not None and loop.time() >= give_up_s:
                _log.warning("the model is taken from the journal", extra={"why": why.message})
                return fallback
            _log.info("waiting for the tensor store", extra={"why": why.message})
            await asyncio.sleep(RETRY_S)


async def newest_digest(
    address: str, model_id: str, *, timeout_s: float, tls: TlsSettings | None = None
) -> str:
    """Digest of what the store has under a name now. Raises what calls to it raise."""
    reply = await _described(address, common_pb2.ModelRef(model_id=model_id), timeout_s, tls)
    return reply.summary.model.digest


async def facts_now(
    address: str,
    model_id: str,
    *,
    digest: str = "",
    timeout_s: float,
    tls: TlsSettings | None = None,
) -> ModelFacts:
    """The facts of what the store has under a name now, or of the version with this digest. Raises
    what calls to it raise, and DataLoss."""
    model = common_pb2.ModelRef(model_id=model_id, digest=digest)
    return facts_from(await _described(address, model, timeout_s, tls))


async def _described(
    address: str, model: common_pb2.ModelRef, timeout_s: float, tls: TlsSettings | None
) -> tensorstore_pb2.DescribeResponse:
    async with channels.open_channel(address, Role.TENSORSTORE, tls=tls) as channel:
        stub = tensorstore_pb2_grpc.TensorStoreServiceStub(channel)
        request = tensorstore_pb2.DescribeRequest(model=model)
        try:
            return await stub.Describe(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def facts_from(reply: tensorstore_pb2.DescribeResponse) -> ModelFacts:
    """Raises DataLoss when the manifest lacks what a controller must know."""
    try:
        raw = json.loads(reply.manifest)["config"]
        config = outline_of(raw)
        return ModelFacts(
            model_id=reply.summary.model.model_id,
            digest=reply.summary.model.digest,
            layer_count=config.layer_count,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            config_json=json.dumps(raw),
            part_bytes=tuple(reply.part_bytes),
            backends=tuple(reply.backends),
        )
    except InvalidArgument as error:
        raise DataLoss(f"the model cannot be served: {error.message}", field=error.field) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLoss("the model's manifest cannot be read", field="manifest") from error
