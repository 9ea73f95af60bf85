"""Options that both ends of every gRPC connection have; importable without the kit's settings."""

from __future__ import annotations

from cryptography import x509

from services.common.roles import ROLE_HOSTS, Role, host_of

MAX_MESSAGE_BYTES = 64 << 20
"""What both ends take at most when nobody sets another limit."""
KEEPALIVE_INTERVAL_S = 5.0
KEEPALIVE_TIMEOUT_S = 5.0


def options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options that client and server must agree on: a client keepalive faster than the server's
    minimum would end live streams."""
    interval_ms = int(KEEPALIVE_INTERVAL_S * 1000)
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        # Without the ping's own timeout (a minute by default) a keepalive that fails ends no call.
        ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", interval_ms // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
        # Services reach each other directly, whatever http_proxy says.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        # A peer that was made anew has another address: its name is looked up again when its
        # connection breaks, not only every 30 s.
        ("grpc.dns_min_time_between_resolutions_ms", 500),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Also the time a connection may take to stand: a busy peer needs more than a tick.
        ("grpc.min_reconnect_backoff_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def expecting(role: Role, own: bytes) -> list[tuple[str, str]]:
    """Options by which the peer's certificate is looked at for its role, not for its host. Where
    the `own` certificate, PEM, does not name its role, others may not do so either, and the host
    is looked at."""
    if not _names_its_role(own):
        return []
    return [("grpc.ssl_target_name_override", host_of(role))]


def _names_its_role(pem: bytes) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return any(name.endswith(ROLE_HOSTS) for name in names.get_values_for_type(x509.DNSName))
