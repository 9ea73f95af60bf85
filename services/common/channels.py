"""Both ends of every gRPC connection: one set of options, deadlines handed on, optional mTLS."""

from __future__ import annotations

import contextvars
import time
from dataclasses import dataclass

import grpc

from services.common import mesh_token
from services.common.certificate_files import CertificateFiles, Pem, files_at
from services.common.channel_options import MAX_MESSAGE_BYTES, expecting
from services.common.channel_options import options as options
from services.common.errors import DeadlineExceeded
from services.common.renewal import RenewedChannel
from services.common.roles import Role
from services.common.settings import TlsSettings

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


def address_of(host: str, port: int) -> str:
    """host:port as addresses are written; an IPv6 host stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_channel(
    address: str,
    role: Role,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    tls: TlsSettings | None = None,
    apart: bool = False,
) -> grpc.aio.Channel:
    """A channel to host:port, whose address may change; the caller closes it.

    With TLS new calls go by the newest certificate there is; those that are open go on. Whoever is
    called shows a certificate of that role. Without TLS calls show the mesh's token. A channel
    `apart` has connections of its own, where others to the same address share theirs.
    """
    chosen = options(max_message_bytes)
    if apart:
        chosen.append(("grpc.use_local_subchannel_pool", 1))
    if tls is not None and tls.enabled:
        return RenewedChannel(
            lambda pem: grpc.aio.secure_channel(
                address, _channel_credentials(pem), [*chosen, *expecting(role, pem.certificate)]
            ),
            files_of(tls).newest,
        )
    return mesh_token.present(
        RenewedChannel(lambda _: grpc.aio.insecure_channel(address, chosen), lambda: None)
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a server listens. Hold it for as long as the server lives: gRPC asks `credentials` for
    every connection, and does not hold them itself."""

    port: int
    credentials: grpc.ServerCredentials | None


def bind(server: grpc.aio.Server, address: str, tls: TlsSettings | None) -> Bound:
    """Binds the server to host:port; raises RuntimeError when it is taken. With TLS each new
    connection is served with the newest certificate there is."""
    if tls is None or not tls.enabled:
        return Bound(server.add_insecure_port(address), None)
    credentials = _server_credentials(files_of(tls))
    return Bound(server.add_secure_port(address, credentials), credentials)


def _channel_credentials(pem: Pem) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pem.authority, pem.key, pem.certificate)


def _server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    served = files.newest()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        newest = files.newest()
        if newest is served:
            return None
        served = newest
        return _configuration(served)

    # Its stubs do not know that None stands for no change.
    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        changed,  # type: ignore[arg-type]
        require_client_authentication=True,
    )


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pem.key, pem.certificate)], root_certificates=pem.authority
    )


def files_of(tls: TlsSettings) -> CertificateFiles:
    """The files of a process that has some. Raises OSError like they do."""
    if tls.authority is None or tls.key is None or tls.certificate is None:
        raise ValueError("TLS needs certificate, key and authority together")
    return files_at(tls.certificate, tls.key, tls.authority)


def hand_on_deadline(remaining_s: float | None) -> None:
    """Remembers the deadline of the RPC this task serves, for the calls it makes."""
    _deadline.set(None if remaining_s is None else time.monotonic() + remaining_s)


def timeout(limit_s: float) -> float:
    """Seconds a call may take: its own limit, or what is left of the caller's deadline if less."""
    deadline = _deadline.get()
    if deadline is None:
        return limit_s
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise DeadlineExceeded("the caller's deadline has passed")
    return min(limit_s, remaining_s)
