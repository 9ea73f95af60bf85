from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.common.errors import InvalidArgument
from services.common.generation import GenerationKind
from services.common.tenants import Tenant
from services.common.wire import ask_digest_from, generation_id_from
from services.router.ask import Ask
from services.router.retries import recognisable

ASK = Ask("m", GenerationKind.CHAT, "hi")
BODY = b'{"model": "m"}'


def header(**values: str) -> Callable[[str], str]:
    return lambda name: values.get(name.replace("-", "_"), "")


def test_equal_asks_of_one_tenant_have_one_digest_and_no_name() -> None:
    first = recognisable(ASK, "/v1/chat/completions", header(), BODY)
    second = recognisable(
        ASK, "/v1/chat/completions", header(x_stainless_retry_count="1"), bytes(BODY)
    )
    assert first.digest == second.digest == ask_digest_from(first.digest) != ""
    assert (first.is_retry, second.is_retry) == (False, True)
    assert first.generation_id == second.generation_id == ""


@pytest.mark.parametrize(
    ("path", "tenant", "body"),
    [
        ("/v1/completions", "", BODY),
        ("/v1/chat/completions", "Bearer other", BODY),
        ("/v1/chat/completions", "", BODY + b" "),
        ("/v1/chat/completions{", "", BODY[1:]),
    ],
)
def test_another_path_tenant_or_body_is_another_ask(path: str, tenant: str, body: bytes) -> None:
    first = recognisable(ASK, "/v1/chat/completions", header(), BODY)
    assert recognisable(ASK, path, header(authorization=tenant), body).digest != first.digest


@pytest.mark.parametrize("count", ["", "0", "-1", "1.5", "²", "one", "1" * 50])
def test_what_is_no_count_above_0_is_no_retry(count: str) -> None:
    assert not recognisable(ASK, "/", header(x_stainless_retry_count=count), BODY).is_retry


def test_a_key_names_one_generation_of_a_tenant_whatever_the_body() -> None:
    named = recognisable(ASK, "/", header(idempotency_key="k1"), BODY)
    assert generation_id_from(named.generation_id) == named.generation_id
    assert (named.digest, named.is_retry) == ("", False)
    assert recognisable(ASK, "/x", header(idempotency_key="k1"), b"").generation_id == (
        named.generation_id
    )
    for other in (
        header(idempotency_key="k2"),
        header(idempotency_key="k1", authorization="Bearer other"),
    ):
        assert recognisable(ASK, "/", other, BODY).generation_id != named.generation_id


def test_a_key_that_is_too_long_is_refused_by_name() -> None:
    recognisable(ASK, "/", header(idempotency_key="k" * 255), BODY)
    with pytest.raises(InvalidArgument) as refused:
        recognisable(ASK, "/", header(idempotency_key="k" * 256), BODY)
    assert refused.value.field == "idempotency-key"


def test_a_tenants_asks_are_known_by_its_mark_whatever_it_shows() -> None:
    named = {"idempotency_key": "order-1"}
    mine, same, other = (
        replace(ASK, tenant=Tenant(name, mark=mark))
        for name, mark in (("acme", "m1"), ("acme", "m1"), ("acme", "m2"))
    )
    for more in ({}, named):
        first, second, third = (
            recognisable(ask, "/v1/completions", header(authorization=shown, **more), BODY)
            for ask, shown in ((mine, "Bearer 1"), (same, "Bearer 2"), (other, "Bearer 1"))
        )
        assert (first.digest, first.generation_id) == (second.digest, second.generation_id)
        assert (first.digest, first.generation_id) != (third.digest, third.generation_id)
