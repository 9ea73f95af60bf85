"""A cloud to try things on: moto behind a filter that gives what moto lacks.

Capacity by pool, prices that move, placement scores, orders that are told apart by their token,
errors, answers that get lost, and the events of an interruption. It knows nothing of the services.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4

import boto3
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.ec2 import balancers
from tests.ec2.shapes import answer, error

REGION = "us-east-1"
ACCOUNT = "123456789012"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}
IMAGE = "ami-0abcdef1234567890"
PRODUCT = "Linux/UNIX"
NOTICE = "EC2 Spot Instance Interruption Warning"
REBALANCE = "EC2 Instance Rebalance Recommendation"
STATE_CHANGE = "EC2 Instance State-change Notification"
TAKEN = "Server.SpotInstanceTermination"
_FORM = "application/x-www-form-urlencoded"
"""How EC2 and some others are asked; all else goes to moto as it is."""
_FORM_LIMIT_BYTES = 1 << 20

_BALANCER = re.compile(r"(?P<scheme>http://)?[\w.-]+\.elb\.amazonaws\.com(:(?P<port>\d+))?")
_STACK_DELETED = (
    b'<DeleteStackResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"/>'
)

Pool = tuple[str, str]
"""Instance type and zone id."""
Form = dict[str, str]
Start = Callable[..., Any]


@dataclass(frozen=True)
class PriceChange:
    """A row of a price file."""

    at_s: float
    pool: Pool
    price: float


def read_prices(text: str) -> list[PriceChange]:
    """A price file: lines of seconds, instance type, zone id, dollars an hour."""
    rows = (line.split(",") for line in text.splitlines() if line.strip())
    return [PriceChange(float(at), (kind, zone), float(price)) for at, kind, zone, price in rows]


@dataclass
class Cloud:
    """What is so, and what happens."""

    capacity: dict[Pool, int] = field(default_factory=dict)
    """Instances that a pool has room for, on spot; others have enough."""
    on_demand_capacity: dict[Pool, int] = field(default_factory=dict)
    reservations: dict[str, tuple[Pool, int]] = field(default_factory=dict)
    prices: list[PriceChange] = field(default_factory=list)
    scores: dict[str, int] = field(default_factory=dict)
    now_s: float = 0.0
    """How far the price file is played."""
    errors: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Of each action, what the next calls are refused with: code and status."""
    lost_answers: int = 0
    """Orders that are carried out, and whose answer never comes."""
    extra: int = 0
    """Orders that start one more than they should."""
    hidden: set[str] = field(default_factory=set)
    """Instances that are not shown."""
    calls: list[tuple[str, Form]] = field(default_factory=list)
    ordered: Callable[[], None] = lambda: None
    """Called when an order was carried out and before it is answered."""
    queue_url: str = ""
    balanced: dict[int, int] = field(default_factory=dict)
    """Where a stack's load balancer is played: by its port, the port of loopback."""
    _tokens: dict[str, tuple[Form, bytes]] = field(default_factory=dict)
    url: str = ""
    _lock: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)

    # What a test asks and does

    def reset(self) -> None:
        """Nothing runs, and nothing is the case; templates stay, and dead instances are shown."""
        with self._lock:
            if living := [one.id for one in self.instances()]:
                self._backend.terminate_instances(living)
            if self.queue_url:
                self._drop_queue()
            fresh = Cloud(url=self.url)
            for one in fields(self):
                if one.name != "_lock":
                    setattr(self, one.name, getattr(fresh, one.name))

    def client(self, service: str) -> Any:
        return boto3.session.Session().client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def environment(self) -> dict[str, str]:
        """Of a process that is to find this cloud."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": REGION}

    def subnets(self) -> dict[str, str]:
        """Default subnets by their zone's id."""
        return {s.availability_zone_id: s.id for s in self._backend.get_default_subnets().values()}

    def make_template(self, name: str = "node") -> None:
        self.client("ec2").create_launch_template(
            LaunchTemplateName=name, LaunchTemplateData={"ImageId": IMAGE}
        )

    def make_queue(self) -> str:
        """A queue that EC2's events come to by way of EventBridge; its URL."""
        sqs, events = self.client("sqs"), self.client("events")
        self.queue_url = sqs.create_queue(QueueName="events")["QueueUrl"]
        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:events"
        events.put_rule(Name="ec2", EventPattern=json.dumps({"source": ["aws.ec2"]}))
        events.put_targets(Rule="ec2", Targets=[{"Id": "queue", "Arn": arn}])
        return self.queue_url

    def _drop_queue(self) -> None:
        """No rule outlives it: moto would have nobody put an event any more."""
        events = self.client("events")
        events.remove_targets(Rule="ec2", Ids=["queue"])
        events.delete_rule(Name="ec2")
        self.client("sqs").delete_queue(QueueUrl=self.queue_url)

    def instances(self, mesh: str | None = None, *, living: bool = True) -> list[Any]:
        """All there are, or those with a mesh's tag, in the order of their start."""
        with self._lock:
            found = list(self._backend.all_instances())
        return [
            one
            for one in found
            if (not living or one.state in ("pending", "running"))
            and (mesh is None or self.tags(one).get("shuntserve:mesh") == mesh)
        ]

    def zone_of(self, instance: Any) -> str:
        """The id of the zone that it is in."""
        return self._zones()[instance.subnet_id]

    @staticmethod
    def tags(instance: Any) -> dict[str, str]:
        return {tag["key"]: tag["value"] for tag in instance.get_tags()}

    def start_stranger(self, tags: dict[str, str] | None = None) -> str:
        """An instance that nobody here ordered."""
        listed = [{"Key": key, "Value": value} for key, value in (tags or {}).items()]
        specs = [{"ResourceType": "instance", "Tags": listed}] if listed else []
        answered = self.client("ec2").run_instances(
            ImageId=IMAGE,
            MinCount=1,
            MaxCount=1,
            InstanceType="g6e.xlarge",
            TagSpecifications=specs,
        )
        instance_id: str = answered["Instances"][0]["InstanceId"]
        return instance_id

    def say(self, detail_type: str, detail: dict[str, str], *, at_s: float | None = None) -> None:
        """Puts an event on the bus."""
        when = datetime.fromtimestamp(time.time() if at_s is None else at_s, UTC)
        entry = {
            "Source": "aws.ec2",
            "DetailType": detail_type,
            "Detail": json.dumps(detail),
            "Time": when,
        }
        self.client("events").put_events(Entries=[entry])

    def deliver(self, body: str) -> None:
        """Puts a message in the queue, whatever it says."""
        self.client("sqs").send_message(QueueUrl=self.queue_url, MessageBody=body)

    def waiting(self) -> int:
        """Messages that nobody has taken out of the queue."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        asked = self.client("sqs").get_queue_attributes(
            QueueUrl=self.queue_url, AttributeNames=names
        )
        return sum(int(asked["Attributes"][name]) for name in names)

    def interrupt(self, instance_id: str, notice_s: float) -> threading.Timer:
        """The market takes an instance: a warning, and its end `notice_s` later."""
        at_s = time.time() - 120 + notice_s  # a warning comes two minutes ahead
        self.say(NOTICE, {"instance-id": instance_id, "instance-action": "terminate"}, at_s=at_s)
        timer = threading.Timer(notice_s, self.take, (instance_id,))
        timer.daemon = True
        timer.start()
        return timer

    def take(self, instance_id: str) -> None:
        """Ends an instance, as the market does."""
        with self._lock:
            self._backend.terminate_instances([instance_id])
            reason = self._backend.get_instance(instance_id).state_reason
            reason.code = TAKEN
        self._changed([instance_id], "terminated")

    def count(self, action: str) -> int:
        """Calls of it."""
        return sum(1 for name, _ in self.calls if name == action)

    # The filter

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if not environ.get("CONTENT_TYPE", "").startswith(_FORM):
            other: Iterable[bytes] = self._moto(environ, start)
            return other
        body = environ["wsgi.input"].read(min(_length(environ), _FORM_LIMIT_BYTES))
        form: Form = dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
        action = form.get("Action", "")
        if action:
            self.calls.append((action, form))
        if self.errors.get(action):
            code, status = self.errors[action].pop(0)
            return _respond(start, error(code, "as was asked for"), status)
        make = {
            "CreateFleet": self._create_fleet,
            "DescribeSpotPriceHistory": self._prices,
            "GetSpotPlacementScores": self._scores,
            "DescribeInstances": self._describe,
            "TerminateInstances": self._terminate,
            "DescribeStacks": self._stacks,
            "DeleteStack": self._delete_stack,
        }.get(action)
        if make is not None and environ["REQUEST_METHOD"] == "POST":
            return make(environ, start, form)
        environ["wsgi.input"] = BytesIO(body)
        handed: Iterable[bytes] = self._moto(environ, start)
        return handed

    def _hand_on(self, environ: dict[str, Any], form: Form) -> tuple[int, bytes]:
        """What moto answers."""
        body = urlencode(form).encode()
        heard: list[int] = []

        def start(status: str, headers: Any, exc_info: Any = None) -> None:
            heard.append(int(status.split()[0]))

        environ = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with self._lock:
            answered = b"".join(self._moto(environ, start))
        return heard[-1], answered

    def _create_fleet(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        """One instance of the deepest pool that has room, and of those the cheapest."""
        token = form.get("ClientToken") or uuid4().hex
        with self._lock:
            before, answered = self._tokens.get(token, (form, b""))
            status = 200
            if before != form:
                code = "IdempotentParameterMismatch"
                return _respond(start, error(code, "the token was used for another"), 400)
            if not answered:
                status, answered = self._carry_out(environ, form)
                if status == 200:
                    self._tokens[token] = form, answered
        self.ordered()
        if self.lost_answers:
            self.lost_answers -= 1
            return _respond(start, error("InternalError", "the answer was lost"), 500)
        return _respond(start, answered, status)

    def _carry_out(self, environ: dict[str, Any], form: Form) -> tuple[int, bytes]:
        market = form["TargetCapacitySpecification.DefaultTargetCapacityType"]
        places = self._overrides(form)
        open_places = [(self._room(market, form, pool), pool, index) for index, pool in places]
        fit = [place for place in open_places if place[0] > 0]
        if not fit:
            lifecycle = "spot" if market == "spot" else "on-demand"
            failed = {
                "ErrorCode": "InsufficientInstanceCapacity",
                "ErrorMessage": "no capacity",
                "Lifecycle": lifecycle,
            }
            value = {"FleetId": f"fleet-{uuid4()}", "Errors": [failed for _ in places]}
            return 200, answer("CreateFleet", value)
        prices = self.prices_now() if market == "spot" else {}
        _, _, index = min(fit, key=lambda place: (-place[0], prices.get(place[1], 0.0)))
        count = 1 + min(1, self.extra)
        self.extra -= count - 1
        prefix = "LaunchTemplateConfigs.1.Overrides."
        kept = {k: v for k, v in form.items() if not k.startswith(prefix)}
        chosen = {
            f"{prefix}1.{k.removeprefix(f'{prefix}{index}.')}": v
            for k, v in form.items()
            if k.startswith(f"{prefix}{index}.")
        }
        kind = "spot" if market == "spot" else "on-demand"
        capacity = {
            "TargetCapacitySpecification.DefaultTargetCapacityType": kind,
            "TargetCapacitySpecification.TotalTargetCapacity": str(count),
        }
        return self._hand_on(environ, kept | chosen | capacity)

    def _zones(self) -> dict[str, str]:
        """The zone's id of every subnet."""
        return {s.id: s.availability_zone_id for s in self._backend.describe_subnets()}

    def _overrides(self, form: Form) -> list[tuple[int, Pool]]:
        places = []
        zones = self._zones()
        prefix = "LaunchTemplateConfigs.1.Overrides."
        index = 1
        while f"{prefix}{index}.InstanceType" in form:
            zone_id = zones[form[f"{prefix}{index}.SubnetId"]]
            places.append((index, (form[f"{prefix}{index}.InstanceType"], zone_id)))
            index += 1
        return places

    def _room(self, market: str, form: Form, pool: Pool) -> int:
        """How many more are to be had; what nobody limits is deep."""
        zones = self._zones()
        living = [
            one for one in self.instances() if (one.lifecycle == "spot") == (market == "spot")
        ]
        running = Counter((one.instance_type, zones.get(one.subnet_id)) for one in living)
        if market == "reserved-capacity":
            key = "ReservedCapacityOptions.CapacityReservationTarget.CapacityReservationId.1"
            reserved, count = self.reservations.get(form.get(key, ""), (pool, 0))
            return count - running[pool] if reserved == pool else 0
        limits = self.capacity if market == "spot" else self.on_demand_capacity
        return limits.get(pool, 1000) - running[pool]

    def prices_now(self) -> dict[Pool, float]:
        """As the price file has them by now."""
        past = (row for row in self.prices if row.at_s <= self.now_s)
        return {row.pool: row.price for row in sorted(past, key=lambda row: row.at_s)}

    def _prices(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        """The last change of each pool before the start that is asked for, on pages of two."""
        types = {value for key, value in form.items() if key.startswith("InstanceType.")}
        zones = {zone.zone_id: zone.name for zone in self._backend.describe_availability_zones()}
        rows = [
            {
                "AvailabilityZone": zones.get(zone_id, zone_id),
                "AvailabilityZoneId": zone_id,
                "InstanceType": kind,
                "ProductDescription": PRODUCT,
                "SpotPrice": f"{price:.6f}",
                "Timestamp": datetime.now(UTC),
            }
            for (kind, zone_id), price in sorted(self.prices_now().items())
            if kind in types
        ]
        first = int(form.get("NextToken") or 0)
        value: dict[str, Any] = {"SpotPriceHistory": rows[first : first + 2]}
        value["NextToken"] = str(first + 2) if first + 2 < len(rows) else ""
        return _respond(start, answer("DescribeSpotPriceHistory", value))

    def _scores(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        value = {
            "SpotPlacementScores": [
                {"Region": REGION, "AvailabilityZoneId": zone_id, "Score": score}
                for zone_id, score in sorted(self.scores.items())
            ]
        }
        return _respond(start, answer("GetSpotPlacementScores", value))

    def _describe(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        """Without those that are hidden: what was started may be shown late."""
        with self._lock:
            hidden = {one.id: self.tags(one) for one in self.instances() if one.id in self.hidden}
            for name, tags in hidden.items():
                self._backend.delete_tags([name], dict.fromkeys(tags))
            try:
                status, answered = self._hand_on(environ, form)
            finally:
                for name, tags in hidden.items():
                    self._backend.create_tags([name], tags)
        return _respond(start, answered, status)

    def _terminate(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        status, answered = self._hand_on(environ, form)
        if status == 200:
            ids = [value for key, value in form.items() if key.startswith("InstanceId.")]
            self._changed(ids, "shutting-down")
        return _respond(start, answered, status)

    def _stacks(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        """Addresses of load balancers are those where they are played."""
        status, answered = self._hand_on(environ, form)
        text = _BALANCER.sub(self._balancer, answered.decode())
        return _respond(start, text.encode(), status)

    def _balancer(self, found: re.Match[str]) -> str:
        scheme, port = found["scheme"] or "", int(found["port"] or 80)
        known = port in self.balanced and (found["scheme"] or found["port"])
        return f"{scheme}127.0.0.1:{self.balanced[port]}" if known else found.group()

    def _delete_stack(self, environ: dict[str, Any], start: Start, form: Form) -> Iterable[bytes]:
        """moto takes away a network before what hangs on it, and refuses that; the stack is gone
        all the same."""
        status, answered = self._hand_on(environ, form)
        if status != 200 and b"DependencyViolation" in answered:
            status, answered = 200, _STACK_DELETED
        return _respond(start, answered, status)

    def _changed(self, instance_ids: Iterable[str], state: str) -> None:
        for instance_id in instance_ids if self.queue_url else ():
            self.say(STATE_CHANGE, {"instance-id": instance_id, "state": state})

    @property
    def _backend(self) -> Any:
        return get_backend("ec2")[ACCOUNT][REGION]


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Says nothing of requests."""


@contextmanager
def running() -> Iterator[Cloud]:
    """A cloud that listens on loopback."""
    balancers.teach()
    cloud = Cloud()
    server = make_server("127.0.0.1", 0, cloud, threaded=True, request_handler=_Quiet)
    cloud.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        cloud.client("ec2")._endpoint.http_session.close()
        server.shutdown()
        server.server_close()
        thread.join()


def _length(environ: dict[str, Any]) -> int:
    return int(environ.get("CONTENT_LENGTH") or 0)


def _respond(start: Start, body: bytes, status: int = 200) -> list[bytes]:
    reason = "OK" if status == 200 else "Refused"
    headers = [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))]
    start(f"{status} {reason}", headers)
    return [body]
