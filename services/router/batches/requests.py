"""The body of `POST /v1/batches` as a batch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from services.common.errors import InvalidArgument
from services.router.batches.answering import ENDPOINTS
from services.router.core.batches.batch import WINDOW_S, Batch
from services.router.core.files import kept_s
from services.router.http.json_body import shown
from services.router.openai.fields import RequestField, given

MAX_PAIRS = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512
WINDOW = f"{WINDOW_S // 3600}h"
EXPIRES_AFTER: Mapping[str, RequestField] = MappingProxyType(
    {
        one.name: one
        for one in (RequestField("anchor", "string"), RequestField("seconds", "integer"))
    }
)
BATCH: Mapping[str, RequestField] = MappingProxyType(
    {
        one.name: one
        for one in (
            RequestField("input_file_id", "string", needed=True),
            RequestField("endpoint", "string", schema={"enum": tuple(ENDPOINTS)}, needed=True),
            RequestField("completion_window", "string", schema={"const": WINDOW}, needed=True),
            RequestField("metadata", "object", neutral=({},)),
            RequestField("output_expires_after", "object", within=EXPIRES_AFTER),
        )
    }
)


def parse_batch(
    body: dict[str, Any],
    batch_id: str,
    tenant: str,
    models: frozenset[str] | None,
    now_unix_s: int,
) -> Batch:
    """Raises InvalidArgument and names the parameter."""
    fields = given(body, BATCH)
    for name in ("input_file_id", "endpoint", "completion_window"):
        if name not in fields:
            raise InvalidArgument(f"{name} is missing", field=name)
    endpoint, window = fields["endpoint"], fields["completion_window"]
    if endpoint not in ENDPOINTS:
        served = ", ".join(ENDPOINTS)
        raise InvalidArgument(
            f"endpoint must be one of {served}, not {shown(endpoint)}", field="endpoint"
        )
    if window != WINDOW:
        raise InvalidArgument(
            f"completion_window must be {WINDOW}, not {shown(window)}", field="completion_window"
        )
    expires = fields.get("output_expires_after")
    if expires is not None:
        found = given(expires, EXPIRES_AFTER, "output_expires_after.")
        expires = kept_s(found.get("anchor"), found.get("seconds"), "output_expires_after")
    return Batch(
        batch_id,
        tenant,
        endpoint,
        fields["input_file_id"],
        now_unix_s,
        now_unix_s + WINDOW_S,
        metadata=_metadata(fields.get("metadata", {})),
        output_expires_s=expires,
        models=None if models is None else tuple(sorted(models)),
    )


def _metadata(pairs: dict[str, Any]) -> Mapping[str, str]:
    if len(pairs) > MAX_PAIRS:
        raise InvalidArgument(
            f"metadata has {len(pairs)} pairs, at most {MAX_PAIRS}", field="metadata"
        )
    for name, value in pairs.items():
        if len(name) > MAX_KEY_CHARS:
            raise InvalidArgument(
                f"metadata: a key has at most {MAX_KEY_CHARS} characters", field="metadata"
            )
        if not isinstance(value, str) or len(value) > MAX_VALUE_CHARS:
            raise InvalidArgument(
                f"metadata: a value is a string of at most {MAX_VALUE_CHARS} characters",
                field="metadata",
            )
    return MappingProxyType(dict(pairs))
