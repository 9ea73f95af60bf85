"""Asks the tensor store what the model is."""

from __future__ import annotations

import asyncio
import json
import logging

import grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import channels
from services.common.errors import DataLoss, InvalidArgument, ShuntError
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.controller.model_facts import ModelFacts
from services.model.config import parse_config

_log = logging.getLogger(__name__)

RETRY_S = 0.5


async def describe(
    address: str,
    model_id: str,
    *,
    known: ModelFacts | None,
    timeout_s: float,
    tls: TlsSettings | None = None,
) -> ModelFacts:
    """The facts of a model, waiting for a store that is away or does not hold it yet.

    With facts known from before it waits for `timeout_s` only, then those stand. Raises what is
    permanent, and DataLoss.
    """
    fallback = known if known is not None and known.model_id == model_id else None
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + timeout_s
    async with channels.open_channel(address, tls=tls) as channel:
        stub = tensorstore_pb2_grpc.TensorStoreServiceStub(channel)
        request = tensorstore_pb2.DescribeRequest(model=common_pb2.ModelRef(model_id=model_id))
        while True:
            try:
                return facts_from(await stub.Describe(request, timeout=timeout_s))
            except grpc.RpcError as error:
                why: ShuntError = from_rpc_error(error)
            if why.permanent:
                raise why
            if fallback is not None and loop.time() >= give_up_s:
                _log.warning("the model is taken from the journal", extra={"why": why.message})
                return fallback
            _log.info("waiting for the tensor store", extra={"why": why.message})
            await asyncio.sleep(RETRY_S)


def facts_from(reply: tensorstore_pb2.DescribeResponse) -> ModelFacts:
    """Raises DataLoss when the manifest lacks what a controller must know."""
    try:
        raw = json.loads(reply.manifest)["config"]
        config = parse_config(raw)
        return ModelFacts(
            model_id=reply.summary.model.model_id,
            digest=reply.summary.model.digest,
            layer_count=config.layer_count,
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            config_json=json.dumps(raw),
        )
    except InvalidArgument as error:
        raise DataLoss(f"the model cannot be served: {error.message}", field=error.field) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLoss("the model's manifest cannot be read", field="manifest") from error
