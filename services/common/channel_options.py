"""Options that both ends of every gRPC connection have; importable without the kit's settings."""

from __future__ import annotations

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
