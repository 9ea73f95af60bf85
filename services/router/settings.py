"""Settings of the router, from SHUNT_ROUTER_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.addresses import addresses_of, checked_address, checked_addresses
from services.common.generation import PriorityClass
from services.common.settings import ServiceSettings, is_loopback, refuse


class RouterSettings(ServiceSettings):
    """Addresses, limits and timings; every limit has a name here."""

    model_config = SettingsConfigDict(
        env_prefix="SHUNT_ROUTER_", frozen=True, extra="ignore", env_nested_delimiter="__"
    )

    router_id: str = Field(default="router-0", min_length=1, max_length=64)
    """Its name, another one for each router of a mesh."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port of the OpenAI-compatible API."""
    grpc_port: int = Field(default=50051, ge=0, le=65535)
    """Port of the gRPC API."""
    controller_address: str = "127.0.0.1:50052"
    """host:port of the controller, or of several of which one leads, between commas."""
    tensorstore_address: str = "127.0.0.1:50053"
    """host:port of the tensor store that has the models' tokenizers."""

    keys: Path | None = None
    """File of API keys that `shunt keys` makes; whoever shows none of them is answered 401."""
    open: bool = False
    """Whoever reaches the doors beyond this host may ask, without a key."""
    admin_port: int | None = Field(default=None, ge=0, le=65535)
    """A listener of its own for /metrics, /healthz and /readyz; without it /metrics is at the
    public door, as long as that asks for no keys."""
    admin_host: str = "127.0.0.1"
    """Address that the listener of `admin_port` has."""

    max_streams: int = Field(default=1024, ge=1)
    """Generations followed at a time; one more is answered 429."""
    metrics_tenants: int = Field(default=50, ge=0, le=10_000)
    """Tenants that metrics tell by name; all that come later are told together."""
    max_connections: int = Field(default=4096, ge=1)
    """HTTP connections at a time; one more is answered 503."""
    max_body_bytes: int = Field(default=16 << 20, ge=1024)
    """The largest body of a request; beyond, 413."""
    max_bodies_bytes: int = Field(default=256 << 20, ge=1024)
    """Of all bodies whose generation has not begun; beyond, 503."""
    max_header_bytes: int = Field(default=32 << 10, ge=1024)
    """The largest header of a request, all lines together; beyond, 431."""
    max_headers: int = Field(default=100, ge=10)
    """Lines of a header; beyond, 431."""
    max_requests_ahead: int = Field(default=16, ge=1)
    """Sent on one connection behind a request that is being answered."""
    max_unread_bytes: int = Field(default=128 << 10, ge=4096)
    """Rendered bytes that wait for a client that does not read; beyond, it is let go."""
    cors_origins: str = "*"
    """Origins of the web pages that may read answers, between commas; `*`: any; empty: none."""
    max_choices: int = Field(default=16, ge=1, le=128)
    """The largest `n` that a request may ask for."""

    leave_pause_s: float = Field(default=5.0, ge=0, le=600)
    """Told to stop, it is not ready, and serves for this long whoever has not noticed."""
    drain_s: float = Field(default=20.0, ge=0, le=3600)
    """Behind the pause it takes nothing new; what it serves then has this long to end by itself."""

    header_timeout_s: float = Field(default=10.0, gt=0)
    """A client has this long to send a request's header; then 408."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """And this long for its body, a file's longer by its size; then 408."""
    unread_s: float = Field(default=1.0, gt=0)
    """What a client has taken nothing of for this long runs on only while nobody else waits."""
    write_timeout_s: float = Field(default=30.0, gt=0)
    """A client that takes nothing for this long is disconnected."""
    keep_alive_s: int = Field(default=75, ge=1)
    """A connection without a request is closed after this long."""
    comment_s: float = Field(default=5.0, gt=0)
    """Silence after which a waiting client gets a comment."""
    route_wait_s: float = Field(default=30.0, ge=0)
    """A new request waits this long for a pipeline; then 503."""
    deadline_s: dict[PriorityClass, PositiveFloat] = Field(default_factory=dict)
    """By class, within which a first token is wanted where a request does not say so; what could
    not have it by then is refused at once. Absent: whenever it comes."""
    report_s: float = Field(default=2.0, gt=0, le=10)
    """Between two reports to the controller of what is asked for."""
    first_event_s: float = Field(default=1.0, ge=0)
    """Wait for the first token before a stream's status line is sent, so that an early error still
    is a status."""

    silence_s: float = Field(default=0.5, gt=0)
    """Of a head that the controller lists no more: its readers leave it."""
    progress_s: float = Field(default=5.0, gt=0)
    """The same for steps."""
    reach_s: float = Field(default=6.0, ge=5)
    """Of a head that is listed: its readers attach again, and after as long again leave it."""
    recover_s: float = Field(default=60.0, gt=0)
    """A stream that has no head for this long ends with an error, and can be resumed yet."""
    resume_timeout_s: float = Field(default=10.0, gt=0)
    """Deadline of one question to the controller for a head; the end of a stored response waits no
    longer for the journal to know it."""
    control_timeout_s: float = Field(default=5.0, gt=0)
    """Deadline of the other unary calls."""
    stream_timeout_s: float = Field(default=3600.0, gt=0)
    """Deadline of one stream to a head or of one watch; both are opened again."""
    generation_retention_s: float = Field(default=600.0, gt=0)
    """How long the journal keeps what has ended; an older id is answered 410."""
    files: str = ""
    """Where files and the results of batches are kept: a directory, or s3://bucket/prefix, that all
    routers of the mesh share; empty: nowhere, and there are neither."""
    max_file_bytes: int = Field(default=200 << 20, ge=1024)
    """The largest file that may be uploaded; beyond, 413."""
    max_uploads: int = Field(default=16, ge=1)
    """Files that come at a time; one more is answered 429."""
    files_keep_s: int = Field(default=30 * 24 * 3600, ge=3600)
    """How long a file is kept of which nobody says otherwise."""
    batches_keep_s: int = Field(default=30 * 24 * 3600, ge=3600)
    """How long a batch is known behind its end."""
    max_batches_at_once: int = Field(default=4, ge=0)
    """Batches that this router works on; 0: it leaves them to others."""
    max_batch_lines_at_once: int = Field(default=64, ge=1)
    """Lines of all of them that it has under way at most."""
    batch_poll_s: float = Field(default=2.0, gt=0)
    """Between two questions whether a batch waits."""
    batch_yield_s: float = Field(default=0.5, ge=0)
    """A live request that waits so long for its first token has batches make room."""
    batch_settle_s: float = Field(default=2.0, ge=0)
    """Nothing of a batch begins for so long behind that."""
    max_model_file_bytes: int = Field(default=64 << 20, ge=1 << 10)
    """The largest of a model's files that it reads: tokenizer, templates, settings."""

    @field_validator("tensorstore_address")
    @classmethod
    def _address(cls, text: str) -> str:
        return checked_address(text)

    @field_validator("controller_address")
    @classmethod
    def _addresses(cls, text: str) -> str:
        return checked_addresses(text)

    @property
    def controllers(self) -> tuple[str, ...]:
        """Each address."""
        return addresses_of(self.controller_address)

    @property
    def is_for_the_mesh(self) -> bool:
        return False


def check_reach(settings: RouterSettings) -> None:
    """Exits 2 where strangers could reach doors that ask nobody who he is."""
    if not (settings.keys or settings.open or is_loopback(settings.host)):
        refuse(
            settings.name_of("keys"),
            f"beyond loopback ({settings.name_of('host')}={settings.host}) a router needs a file of"
            f" API keys, as `shunt keys create` makes one, or to be told in words that whoever"
            f" reaches it may ask: {settings.name_of('open')}=true",
        )
