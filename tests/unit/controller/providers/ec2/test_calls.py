from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError

from services.controller.providers.ec2 import calls
from services.controller.providers.ec2.calls import Calls, in_thread, make_client
from services.controller.providers.ec2.failures import Matter, Refusal


def client_error(code: str, status: int = 400) -> ClientError:
    said = {
        "Error": {"Code": code, "Message": "so"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(said, "CreateFleet")  # type: ignore[arg-type]


class Client:
    """Does what it was told to, call by call; the last of it for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def create_fleet(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        found: dict[str, Any] = answer
        return found


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_WAIT_S", 0.001)


TIMEOUT = ReadTimeoutError(endpoint_url="https://ec2")


async def test_what_passes_is_tried_again() -> None:
    client = Client(client_error("RequestLimitExceeded", 503), TIMEOUT, {"FleetId": "f"})
    assert await Calls(client, limit_s=60).call("create_fleet", Type="instant") == {"FleetId": "f"}
    assert client.asked == [{"Type": "instant"}] * 3


@pytest.mark.parametrize(
    ("error", "matter", "code"),
    [
        (client_error("InsufficientInstanceCapacity", 500), Matter.CAPACITY, None),
        (client_error("UnauthorizedOperation", 403), Matter.OPERATOR, None),
        (NoCredentialsError(), Matter.OPERATOR, "NoCredentialsError"),
    ],
)
async def test_what_stays_so_is_asked_once(
    error: Exception, matter: Matter, code: str | None
) -> None:
    client = Client(error)
    with pytest.raises(Refusal) as caught:
        await Calls(client, limit_s=60).call("create_fleet")
    assert caught.value.matter is matter
    assert code in (None, caught.value.code)
    assert not caught.value.in_doubt
    assert len(client.asked) == 1


@pytest.mark.parametrize("last", [client_error("Throttling"), client_error("VcpuLimitExceeded")])
async def test_one_attempt_that_may_have_worked_leaves_the_whole_in_doubt(last: Exception) -> None:
    with pytest.raises(Refusal) as caught:
        await Calls(Client(TIMEOUT, last), limit_s=0.05).call("create_fleet")
    assert caught.value.in_doubt


async def test_all_pages_are_read() -> None:
    client = Client({"Rows": [1], "NextToken": "a"}, {"Rows": [2], "NextToken": "b"}, {"Rows": []})
    pages = await Calls(client, limit_s=1).pages("create_fleet", Mesh="m")
    assert [page["Rows"] for page in pages] == [[1], [2], []]
    assert [asked.get("NextToken") for asked in client.asked] == [None, "a", "b"]


async def test_pages_without_end_are_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_PAGES", 3)
    with pytest.raises(Refusal, match="TooManyPages"):
        await Calls(Client({"NextToken": "again"}), limit_s=1).pages("create_fleet")


async def test_a_call_that_nobody_waits_for_holds_up_nothing() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "aws")
    go_on.set()


def test_a_client_tries_nothing_again_by_itself() -> None:
    client = make_client("ec2", "us-east-1")
    assert client.meta.config.retries["total_max_attempts"] == 1
