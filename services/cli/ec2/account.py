"""The AWS account that commands work in: its clients, and what they raise in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from services.cli.ec2.complaints import advice
from services.cli.mesh_directory import MeshError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
ATTEMPTS = 5


class AwsRefusal(MeshError):
    """AWS, or boto3 before it, has refused a call; the text says what to do about it."""

    def __init__(self, code: str, said: str, doing: str) -> None:
        super().__init__(advice(code, said, doing))
        self.code = code
        self.said = said


@contextmanager
def refusals(doing: str) -> Iterator[None]:
    """Raises AwsRefusal for whatever boto3 raises inside; `doing` is service:Action."""
    try:
        yield
    except ClientError as error:
        told: Mapping[str, Any] = error.response.get("Error", {})
        code, said = str(told.get("Code", "")), str(told.get("Message", ""))
        raise AwsRefusal(code, said, doing) from None
    except (BotoCoreError, ResponseParserError, ValueError) as error:
        raise AwsRefusal(type(error).__name__, str(error), doing) from None


class Client:
    """A service's operations, as boto3 names them."""

    def __init__(self, service: str, made: Any) -> None:
        self._service = service
        self._made = made

    def __getattr__(self, operation: str) -> Callable[..., dict[str, Any]]:
        def call(**arguments: Any) -> dict[str, Any]:
            with refusals(self._doing(operation)):
                answer: dict[str, Any] = getattr(self._made, operation)(**arguments)
                return answer

        return call

    def pages(self, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """All pages of an answer. Raises AwsRefusal."""
        with refusals(self._doing(operation)):
            yield from self._made.get_paginator(operation).paginate(**arguments)

    def _doing(self, operation: str) -> str:
        names: Mapping[str, str] = self._made.meta.method_to_api_mapping
        return f"{self._service}:{names.get(operation, operation)}"


@dataclass(frozen=True, slots=True)
class Account:
    """One account in one region; credentials, profile, endpoint are found as boto3 finds them."""

    region: str
    number: str
    user: str
    """ARN of whose credentials these are."""
    _session: Any
    _clients: dict[str, Client] = field(default_factory=dict)

    @classmethod
    def open(cls, region: str = "") -> Account:
        """Asks who this is: the first call, and one that needs no right. Raises AwsRefusal."""
        with refusals("sts:GetCallerIdentity"):
            session = boto3.session.Session(region_name=region or None)
            if not session.region_name:
                raise AwsRefusal("NoRegionError", "", "")
            sts = session.client("sts", config=_config())
            who = sts.get_caller_identity()
        return cls(session.region_name, who["Account"], who["Arn"], session)

    def client(self, service: str) -> Client:
        """Of a service, made once."""
        if service not in self._clients:
            with refusals(service):
                made = self._session.client(service, config=_config())
            self._clients[service] = Client(service, made)
        return self._clients[service]


def _config() -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
    )
