"""EC2's instance metadata, version 2: every question shows a token, which the instance itself drew.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html,
spot-instance-termination-notices.html and rebalance-recommendations.html beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from services.cli.node.metadata.cloud import Clocks, name_of, utc_s
from services.cli.node.metadata.service import MetadataService, Reply
from services.common.errors import InvalidArgument, Unavailable
from services.common.machine import MachineFacts
from services.common.notices import Notice, NoticeKind

URL = "http://169.254.169.254"
TOKEN_TTL_S = 21_600
"""The longest there is."""
_FRESH = 0.8
"""Of its time a token is used for so much."""
_TOKEN = "X-aws-ec2-metadata-token"
_TTL = "X-aws-ec2-metadata-token-ttl-seconds"
_ROOT = "/latest/meta-data/"
_ACTIONS = ("terminate", "stop", "hibernate")


class Ec2:
    """The instance that this process is on."""

    name = "ec2"

    def __init__(
        self,
        service: MetadataService,
        clocks: Clocks,
        *,
        pause_s: float,
        token_ttl_s: int = TOKEN_TTL_S,
    ) -> None:
        self.pause_s = pause_s
        self._service = service
        self._clocks = clocks
        self._token_ttl_s = token_ttl_s
        self._token = ""
        self._renew_at_s = 0.0

    async def facts(self) -> MachineFacts:
        """Zones go by their ids, which mean the same to every account."""
        zone = await self._known("placement/availability-zone-id")
        if zone is None:
            zone = await self._known("placement/availability-zone")
        life_cycle = await self._known("instance-life-cycle")
        return MachineFacts(
            instance_id=await self._known("instance-id"),
            instance_type=await self._known("instance-type"),
            zone=zone,
            spot=None if life_cycle is None else life_cycle == "spot",
        )

    async def look(self) -> Iterable[Notice]:
        """What is garbage in one place is told once the others were looked at."""
        notices, wrong = list[Notice](), list[InvalidArgument]()
        for path, read in (
            ("spot/instance-action", self._action),
            ("spot/termination-time", self._termination),
            ("events/recommendations/rebalance", self._rebalance),
        ):
            said = await self._ask(path)
            try:
                notice = None if said is None else read(said)
            except InvalidArgument as error:
                wrong.append(error)
                continue
            if notice is not None:
                notices.append(notice)
        if wrong and not notices:
            raise wrong[0]
        return notices

    def _action(self, text: str) -> Notice | None:
        return self._notice(action_at_s(text))

    def _termination(self, text: str) -> Notice | None:
        """The older form, which may hold something that is no time."""
        try:
            return self._notice(utc_s(text))
        except InvalidArgument:
            return None

    def _notice(self, at_unix_s: float) -> Notice | None:
        deadline_s = self._clocks.deadline_s(at_unix_s)
        return None if deadline_s is None else Notice(NoticeKind.SPOT, deadline_s)

    def _rebalance(self, text: str) -> Notice:
        check_rebalance(text)
        return Notice(NoticeKind.REBALANCE, None)

    async def _known(self, path: str) -> str | None:
        said = await self._ask(path)
        return None if said is None else name_of(said, path)

    async def _ask(self, path: str) -> str | None:
        """None where there is nothing of that name, as of a notice until it is given."""
        reply = await self._with_token(path)
        if reply.status == 401:  # it ended before its time
            self._token = ""
            reply = await self._with_token(path)
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise Unavailable(f"the metadata service answers {reply.status} for {path}")
        return reply.text

    async def _with_token(self, path: str) -> Reply:
        if not self._token or self._clocks.here() >= self._renew_at_s:
            await self._draw_token()
        return await self._service.ask(self._service.path(_ROOT + path), {_TOKEN: self._token})

    async def _draw_token(self) -> None:
        asked_s = self._clocks.here()
        reply = await self._service.ask(
            self._service.path("/latest/api/token"),
            {_TTL: str(self._token_ttl_s), "Content-Length": "0"},
            method="PUT",
        )
        if reply.status != 200:
            raise Unavailable(f"the metadata service gives no token: {reply.status}")
        token, said = reply.text, reply.headers.get(_TTL.lower(), "")
        if not token or len(token) > 1024 or not token.isascii() or not token.isprintable():
            raise Unavailable("the metadata service gives a token that is none")
        ttl_s = min(int(said), self._token_ttl_s) if said.isdecimal() and len(said) < 9 else 0
        self._token = token
        self._renew_at_s = asked_s + _FRESH * (ttl_s or self._token_ttl_s)


def action_at_s(text: str) -> float:
    """When an instance-action will be carried out, in seconds since 1970; raises
    InvalidArgument."""
    action = _object(text, "spot/instance-action")
    if action.get("action") not in _ACTIONS:
        raise InvalidArgument(f"an action is one of {', '.join(_ACTIONS)}", field="action")
    return utc_s(str(action.get("time")))


def check_rebalance(text: str) -> None:
    """Raises InvalidArgument for what is no recommendation."""
    utc_s(str(_object(text, "events/recommendations/rebalance").get("noticeTime")))


def _object(text: str, path: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path} holds a JSON object", field=path)
    return found
