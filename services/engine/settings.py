"""Settings of an engine process: SHUNT_ENGINE_* in the environment."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.addresses import addresses_of, checked_addresses
from services.common.nodes import MOST_DEVICES, Backend
from services.common.settings import ServiceSettings

WILDCARDS = ("0.0.0.0", "::", "[::]")


class Declared(BaseModel):
    """What a provider says of a node that it starts; None says nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_type: str | None = Field(default=None, min_length=1, max_length=128)
    """Its instance type."""
    pool: str | None = Field(default=None, min_length=1, max_length=128)
    """The pool of capacity that it is taken from."""
    spot: bool | None = None
    """Whether it can be taken away."""


class Found(BaseModel):
    """What `shunt node` has found of its machine; None is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_id: str | None = Field(default=None, min_length=1, max_length=128)
    """The cloud's name of the machine."""
    instance_type: str | None = Field(default=None, min_length=1, max_length=128)
    """Its instance type."""
    zone: str | None = Field(default=None, min_length=1, max_length=128)
    """Its zone."""
    spot: bool | None = None
    """Whether it can be taken away."""


class EngineSettings(ServiceSettings):
    """One stage worker."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_ENGINE_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    node_id: str = Field(min_length=1, max_length=128)
    """The node that it is."""
    controller: str = ""
    """host:port of the controller, or of several of which one is it, between commas; empty serves
    without one, for tests and benchmarks."""
    advertise_host: str = ""
    """Host that others reach this process by; empty: `host`, or the machine's name for any."""
    store: str = Field(default="", description="URI of the tensor store")
    """URI of the tensor store."""
    relative_speed: float = Field(default=1.0, gt=0)
    """How quick the node is, beside others of the mesh."""
    memory_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """Memory for weights and KV cache, at most: where less is found, that counts."""
    found: Found | None = None
    """Set by `shunt node` alone: what it found, told as found."""
    declared: Declared | None = None
    """Set by a local provider alone, whose word speed and memory above are then, too: they are told
    as declared, and not as found."""
    core_share: float = Field(default=1.0, gt=0, le=1)
    """Steps take no more than this share of a core: a local provider sets it for a node whose speed
    its market declares."""
    backend: Backend = "native"
    """What computes: our own kernels, or vLLM, which has an environment of its own (make vllm)."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:[0-9]+)?)$")
    """Where it computes: cpu, cuda, or one GPU of several as cuda:1."""
    device_type: str = ""
    """Name in the placement catalogue; empty: as it is found, and cpu where it is not."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What it computes in."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of a stage on a CPU; more than there are cores are slower than one."""
    kernel_cache: Path | None = None
    """Where compiled CPU kernels are kept; unset: the user's own cache."""

    kv_positions: int = Field(default=8 * 2048 + 4096, ge=16)
    """Positions the KV cache is made for, if memory allows."""
    token_budget: int = Field(default=256, ge=16, le=65536)
    """Most rows of a step: an id that is decoded is one, a prompt has one for each of its ids."""
    hurried_rows: int = Field(default=16, ge=16)
    """Prompt rows of a step, at most, where another tenant's next request would come before them:
    it waits for the steps in flight. Or as many as take no longer than a step without any."""
    max_sequences: int = Field(default=64, ge=1, le=1024)
    """Sequences that run at a time; others wait. It is below the budget, so that prompts always
    advance."""
    min_overlap_sequences: int = Field(default=8, ge=1)
    """A further step starts while one is in flight only when this many sequences wait for it:
    splitting a small batch costs more than overlapping stages gains."""
    min_overlap_rows: int = Field(default=128, ge=1)
    """Or when this many prompt rows wait."""
    max_drafts: int = Field(default=8, ge=0, le=64)
    """Guesses of next ids that a sequence has in a step, at most; 0 guesses nothing."""
    share_prefixes: bool = True
    """KV blocks whose ids are equal from the first on are one, and stay for whoever comes next."""
    kv_shelf_bytes: int | None = Field(default=None, ge=0)
    """Of the host's memory, beside `memory_bytes`, at most, for KV blocks that others may fetch
    when a pipeline is handed over with them; unset: a quarter of it, and 1 GiB at least."""
    kv_keep_s: float = Field(default=20.0, gt=0, le=600)
    """They are kept for this long: what goes ahead first is there still when its generation
    comes."""
    kv_fetch_s: float = Field(default=5.0, gt=0, le=600)
    """Blocks that do not come within this long are computed, unless their grant says how long they
    take."""
    kv_silent_s: float = Field(default=1.0, gt=0, le=60)
    """Nor are those of a stage that says nothing for this long."""
    kv_flows: int = Field(default=2, ge=1, le=64)
    """Connections over which a stage reads blocks from one other."""
    kv_ahead_share: float = Field(default=0.5, gt=0, le=1)
    """Blocks that go ahead of their generations do so for this share of the time, at most."""
    kv_ahead_slows: float = Field(default=0.1, gt=0, le=1)
    """Meanwhile decoding loses no more than this of its rate: blocks go for as little of the time
    as that takes."""
    kv_prefix_fetch_s: float = Field(default=2.0, ge=0, le=600)
    """The beginning of a prompt that another pipeline has computed is fetched from it where that
    takes less time than computing it, and waited for no longer than this; 0: none is fetched."""
    kv_prefix_at_once: int = Field(default=4, ge=1, le=256)
    """Beginnings that a head fetches at a time; and as many others may fetch from it."""
    kv_prefix_bytes_per_s: float = Field(default=1e8, gt=0)
    """What the link to other pipelines is taken to give, until fetches have shown it."""
    kv_bytes_per_s: float = Field(default=0.0, ge=0)
    """At most so many bytes a second are sent to those that fetch; 0: as many as there are."""
    max_readers: int = Field(default=2048, ge=1)
    """Streams that it has at a time; one more is refused."""
    reader_stall_s: float = Field(default=60.0, gt=0)
    """A reader that takes nothing for this long is let go."""
    yield_s: float = Field(default=0.25, ge=0)
    """What nobody has read for this long gives its place to what is read."""
    detach_s: float = Field(default=10.0, gt=0)
    """What nobody has read for this long is parked: its ids stay, nothing runs."""
    progress_s: float = Field(default=2.0, gt=0)
    """A step may take this much longer than expected before its formation counts as stuck."""
    ranks: int = Field(default=1, ge=0, le=MOST_DEVICES)
    """Ranks that plans may have share a stage here; 0: one for each device, or for each core. A
    plan of an operator's may have more."""
    rank_progress_s: float = Field(default=5.0, gt=0, le=600)
    """A step of a stage of several ranks may take this much longer than expected before they count
    as stuck and are ended."""
    form_s: float = Field(default=8.0, gt=0)
    """A head's formation has to stand within this, or is given up."""
    probe_s: float = Field(default=0.5, gt=0)
    """A neighbour that does not answer within this, when it is asked, is silent."""
    checkpoint_interval_s: float = Field(default=0.05, gt=0, le=0.1)
    """New ids go to the journal this often."""
    frame_interval_s: float = Field(default=0.25, gt=0, le=0.25)
    """A reader whose generation runs hears at least this often."""
    queued_frame_interval_s: float = Field(default=2.0, gt=0, le=2.0)
    """The same while it is queued; routers attach again after 5 s of silence or more."""
    hears_notices: bool = False
    """Set by `shunt node` alone: the lines of its standard input are notices."""
    notice_s: float = Field(default=25.0, ge=0, le=3600)
    """Told to stop while it serves, it does so for this long, or until its stage was handed over
    to others."""
    controller_timeout_s: float = Field(default=2.0, gt=0)
    """Deadline of one call of the controller."""
    orphan_s: float = Field(default=120.0, gt=0)
    """Without a controller and without a reader for this long the process ends itself."""

    @field_validator("backend")
    @classmethod
    def _is_installed(cls, value: Backend) -> Backend:
        if value == "vllm" and find_spec("vllm") is None:
            raise ValueError("vLLM is not installed where this engine runs; `make vllm` does that")
        return value

    @model_validator(mode="after")
    def _prompts_always_advance(self) -> Self:
        if self.token_budget <= self.max_sequences:
            raise ValueError("token_budget must exceed max_sequences, or prompts would starve")
        return self

    @field_validator("controller")
    @classmethod
    def _addresses(cls, text: str) -> str:
        return checked_addresses(text) if text else text

    @property
    def controllers(self) -> tuple[str, ...]:
        """Each address."""
        return addresses_of(self.controller)

    @property
    def own_node_id(self) -> str:
        return self.node_id

    @property
    def reachable_host(self) -> str:
        """The host part of the address that this process registers."""
        if self.advertise_host:
            return self.advertise_host
        return socket.gethostname() if self.host in WILDCARDS else self.host
