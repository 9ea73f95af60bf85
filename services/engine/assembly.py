"""Builds an engine from its settings; whoever runs it decides about servers and signals."""

from __future__ import annotations

import secrets
import time
from functools import partial

import grpc

from services.common import channels
from services.common.host import usable_memory_bytes
from services.common.roles import Role
from services.engine.backend import BLOCK_SIZE
from services.engine.compute import Compute
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.memory import Memory
from services.engine.core.prefix_fetching import PrefixSettings
from services.engine.core.resting import AheadSettings
from services.engine.core.scheduler import SchedulerSettings
from services.engine.counters import Counters
from services.engine.engine import Engine, EngineLimits
from services.engine.head import Head, ReaderLimits
from services.engine.kv_calls import KvCalls, KvReader
from services.engine.kv_exchange import KvExchange
from services.engine.kv_gatherer import KvLimits
from services.engine.native.loader import NativeLoader, NativeOptions
from services.engine.neighbours import silent
from services.engine.peers import Peers
from services.engine.ranks.group import Patience
from services.engine.ranks.loader import RankedLoader
from services.engine.ranks.messages import OfRank
from services.engine.settings import EngineSettings
from services.engine.stages import StageLoader, Stages
from services.engine.vllm.loader import VllmLoader, VllmOptions

LEAST_SHELF_BYTES = 1 << 30
"""Where nothing else is set, for blocks that others may fetch."""


def make_loader(settings: EngineSettings) -> StageLoader:
    """Of the backend that computes; neither imports what it computes with before it is warmed."""
    whole: StageLoader
    of_rank: OfRank
    if settings.backend == "vllm":
        vllm = VllmOptions(
            settings.store,
            settings.dtype,
            settings.device,
            settings.token_budget,
            settings.max_sequences,
        )
        whole, of_rank = VllmLoader(vllm), partial(VllmLoader, vllm)
    else:
        native = NativeOptions(
            settings.store,
            settings.dtype,
            settings.device,
            settings.threads,
            settings.kernel_cache,
        )
        whole, of_rank = NativeLoader(native), partial(NativeLoader, native)
    return RankedLoader(
        whole,
        of_rank,
        threads=settings.threads,
        patience=Patience(settings.rank_progress_s),
        level=settings.log_level,
    )


def _shelf_bytes(settings: EngineSettings) -> int:
    """What is there for blocks that others may fetch."""
    if settings.kv_shelf_bytes is not None:
        return settings.kv_shelf_bytes
    return max(LEAST_SHELF_BYTES, (usable_memory_bytes() or 0) // 4)


def assemble(
    settings: EngineSettings, loader: StageLoader, *, memory_bytes: int | None = None
) -> Engine:
    """An engine with a new incarnation, in no formation. `memory_bytes` is what there is of memory
    where that is less than the settings have."""
    incarnation, compute, counters = secrets.token_hex(8), Compute(), Counters()

    def connect(address: str, *, apart: bool = False) -> grpc.aio.Channel:
        return channels.open_channel(
            address,
            Role.ENGINE,
            max_message_bytes=settings.max_message_bytes,
            tls=settings.tls,
            apart=apart,
        )

    head_settings = HeadSettings(
        frame_interval_s=settings.frame_interval_s,
        queued_frame_interval_s=settings.queued_frame_interval_s,
        checkpoint_interval_s=settings.checkpoint_interval_s,
        yield_s=settings.yield_s,
        detach_s=settings.detach_s,
    )
    ahead = AheadSettings(settings.kv_ahead_share, settings.kv_ahead_slows)
    readers = ReaderLimits(
        settings.max_readers, settings.reader_stall_s, ahead, settings.kv_prefix_at_once
    )
    prefixes = PrefixSettings(
        settings.kv_prefix_fetch_s, settings.kv_prefix_at_once, settings.kv_prefix_bytes_per_s
    )
    generations = Generations(incarnation, head_settings)
    batches = SchedulerSettings(
        settings.token_budget,
        settings.max_sequences,
        settings.min_overlap_sequences,
        settings.min_overlap_rows,
        settings.max_drafts,
        settings.share_prefixes,
        settings.hurried_rows,
    )
    limits = KvLimits(
        _shelf_bytes(settings),
        settings.kv_keep_s,
        settings.kv_silent_s,
        settings.kv_flows,
        bytes_per_s=settings.kv_bytes_per_s,
    )
    peers, flows = Peers(connect), Peers(partial(connect, apart=True), apart=True)
    exchange = KvExchange(incarnation, limits, KvReader(flows).read, time.monotonic)
    memory = Memory(memory_bytes or settings.memory_bytes, settings.kv_positions // BLOCK_SIZE)
    return Engine(
        settings.node_id,
        incarnation,
        compute=compute,
        stages=Stages(loader, compute, memory),
        head=Head(
            generations,
            readers,
            counters,
            time.monotonic,
            KvCalls(exchange, peers, settings.kv_fetch_s),
        ),
        kv=exchange,
        counters=counters,
        limits=EngineLimits(
            batches,
            settings.progress_s,
            settings.form_s,
            settings.max_message_bytes,
            settings.core_share,
            prefixes,
        ),
        connect=connect,
        peers=(peers, flows),
        silent=partial(silent, connect=connect, timeout_s=settings.probe_s),
    )
