"""How long the controller waits for nodes and engines, and what it keeps for how long: the part of
its settings that no other one depends on."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings
from services.controller.core.documents import DocumentSettings
from services.controller.engines import EngineTimeouts


class TimingSettings(ServiceSettings):
    """Of nodes and of calls of engines and neighbours."""

    heartbeat_interval_s: float = Field(default=0.25, gt=0, le=0.5)
    """Nodes are told to say so often that they live."""
    beats_per_s: float = Field(default=500.0, ge=10, le=100_000)
    """No more are wanted of all nodes together: where there are more than so many allow, each is
    told to beat more seldom, and its silence counts from when it should have beaten."""
    glance_s: float = Field(default=0.25, gt=0, le=0.5)
    """The longest time between two looks at the cluster; what of a longer one was not watched is
    nobody's silence."""
    stall_s: float = Field(default=2.0, gt=0, le=600)
    """A head silent for this long does not serve: its readers may leave it."""
    progress_s: float = Field(default=5.0, gt=0, le=600)
    """Nor does one that has work and makes no step for this long."""
    node_lost_s: float = Field(default=3.0, gt=0, le=600)
    """A node silent for this long is lost."""
    empty_node_lost_s: float = Field(default=15.0, gt=0, le=600)
    """The same for one that holds no stage: it imports and loads, and may hardly find time."""
    restart_grace_s: float = Field(default=3.0, gt=0, le=600)
    """Nobody counts as dead for this long after a restart."""
    settle_s: float = Field(default=10.0, gt=0, le=600)
    """The first plan is made so long after the first node came, where fewer come than were
    expected."""
    launch_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """A launched node that does not register within this is given up."""
    retry_s: float = Field(default=0.5, gt=0, le=60)
    """Pause before a failed launch, plan, load or form is tried again; it doubles from failure to
    failure."""
    retry_max_s: float = Field(default=30.0, gt=0, le=3600)
    """The longest such pause, but for nodes that were paid for."""
    replace_max_s: float = Field(default=600.0, gt=0, le=86_400)
    """The longest pause before one more node replaces those that started and came to nothing."""
    stable_s: float = Field(default=10.0, gt=0, le=3600)
    """A node that has served for so long came to something, whatever becomes of it."""
    load_attempts: int = Field(default=4, ge=1, le=100)
    """A node that fails to load a stage so often gives it up to another one, which has one."""
    undeploy_grace_s: float = Field(default=60.0, ge=0, le=86_400)
    """What an undeployed model has begun may take so long to end by itself."""
    terminate_grace_s: float = Field(default=2.0, ge=0, le=600)
    """A local node that is told to end has this long before it is killed."""

    hold_timeout_s: float = Field(default=900.0, gt=0, le=86_400)
    """Deadline of a load."""
    hold_progress_s: float = Field(default=60.0, gt=0, le=3600)
    """A load that reports no progress for this long has failed."""
    form_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Deadline of an engine's answer to Form."""
    engine_describe_timeout_s: float = Field(default=1.0, gt=0, le=600)
    """Deadline of its answer to Describe."""
    dissolve_timeout_s: float = Field(default=1.0, gt=0, le=600)
    """Deadline of its answer to Dissolve."""
    drain_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Deadline of its answer to Drain, behind the time that blocks take which travel behind the
    seal."""
    cancel_timeout_s: float = Field(default=2.0, gt=0, le=600)
    """Deadline of its answer to Cancel."""
    probe_timeout_s: float = Field(default=0.5, gt=0, le=60)
    """A node that may be dead is looked for this long: one that refuses connections is."""
    plan_timeout_s: float = Field(default=10.0, gt=0, le=3600)
    """Placement has this long for a plan."""
    describe_timeout_s: float = Field(default=5.0, gt=0, le=600)
    """The tensor store has this long for what it knows of the model."""

    @property
    def engine_timeouts(self) -> EngineTimeouts:
        return EngineTimeouts(
            hold_s=self.hold_timeout_s,
            hold_progress_s=self.hold_progress_s,
            form_s=self.form_timeout_s,
            describe_s=self.engine_describe_timeout_s,
            dissolve_s=self.dissolve_timeout_s,
            drain_s=self.drain_timeout_s,
            cancel_s=self.cancel_timeout_s,
            probe_s=self.probe_timeout_s,
        )


class RetentionSettings(ServiceSettings):
    """Of generations, responses, documents and events."""

    resume_wait_s: float = Field(default=60.0, gt=0, le=3600)
    """A reader that comes back waits this long for a head."""
    same_head_after_s: float = Field(default=1.0, ge=0, le=600)
    """A formation that a reader left because it does not serve is granted again only after this
    long: by then the cluster knows better."""
    own_arithmetic_s: float = Field(default=20.0, ge=0, le=600)
    """So long a generation waits for a head of its numerics class that is about to serve, before it
    goes on under another."""
    retention_s: float = Field(default=600.0, gt=0)
    """An ended generation is kept this long."""
    parked_retention_s: float = Field(default=3600.0, gt=0)
    """An open one that nobody touches is kept this long."""
    responses_keep_s: float = Field(default=2_592_000.0, gt=0)
    """A response that is stored is kept this long; 30 days."""
    max_responses: int = Field(default=1_000_000, ge=0)
    """Responses kept that have ended; the oldest makes room."""
    max_generations: int = Field(default=100_000, ge=1)
    """Open ones and ended ones, all together; one more is refused."""
    max_ended_generations: int = Field(default=10_000, ge=0)
    """Ended ones kept; the oldest end makes room."""
    max_parked_generations: int = Field(default=10_000, ge=0)
    """Parked ones kept that nobody reads; the oldest makes room."""
    max_documents: int = Field(default=20_000, ge=1)
    """Files and batches that routers keep here, those that have ended too."""
    max_documents_chars: int = Field(default=64 << 20, ge=1 << 20)
    """Of what is kept of them all."""
    document_lease_s: float = Field(default=10.0, gt=0, le=600)
    """A router that works on a batch and says nothing for so long has lost it to the next."""
    retry_window_s: float = Field(default=60.0, ge=0, le=3600)
    """A client's retry joins what it asked first when that was left no longer ago."""
    checkpoints_in_flight: int = Field(default=64, ge=1, le=10_000)
    """Messages of one head that may wait for the journal."""

    commit_interval_s: float = Field(default=0.01, ge=0, le=0.02)
    """Tokens are written to the journal together this often."""
    sync_always: bool = False
    """Every group of tokens is fsynced too, not only grants."""
    journal_pending_limit: int = Field(default=10_000, ge=1)
    """Changes that may wait to be written; beyond, callers are told to come again."""
    journal_reserve_bytes: int = Field(default=32 << 20, ge=0, le=1 << 34)
    """Kept free beside the journal; once the disk is full, grants and ends are written there."""
    events_kept: int = Field(default=10_000, ge=1, le=1_000_000)
    """Events that the log keeps; the oldest makes room."""

    @property
    def documents(self) -> DocumentSettings:
        return DocumentSettings(self.max_documents, self.max_documents_chars, self.document_lease_s)
