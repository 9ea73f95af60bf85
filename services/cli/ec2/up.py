"""`shunt ec2 up`: from credentials to a mesh that answers. Whatever is there already stays, so that
one that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from services.cli import key_files
from services.cli.ec2.account import Account, AwsRefusal
from services.cli.ec2.bucket import has, left_behind, push, store_uri
from services.cli.ec2.following import follow
from services.cli.ec2.home import Home
from services.cli.ec2.market import zones_of
from services.cli.ec2.options import Options
from services.cli.ec2.quote import Quote, quote, quote_text
from services.cli.ec2.spend import TYPES_NAME
from services.cli.ec2.stack import StackView, Tell
from services.cli.ec2.standing import standing_of
from services.cli.ec2.stored import Stored, stored_model
from services.cli.ec2.template import Template
from services.cli.mesh_directory import MeshError
from services.common.api_keys import VARIABLE
from services.common.errors import ShuntError

KEYS_NAME = "keys"
FIRST_KEY_NAME = "first-key"
FIRST_TENANT = "first"
LINKED_ROLES = ("spot.amazonaws.com", "ec2fleet.amazonaws.com")
"""Services that act in the account's name when nodes are bought; no stack can let them."""
_FLAGS: Mapping[str, tuple[str, str]] = {
    "GatewayCidr": ("--gateway-cidr", "whose addresses may call the gateway, such as yours/32"),
    "ServicesImage": ("--services-image", "the container image of the services"),
    "NodeImage": ("--node-image", "the container image of a node"),
}
"""Options of parameters that no default is right for."""
_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "MeshName": ("mesh", str),
    "Model": ("model", str),
    "FirstNodes": ("nodes", str),
    "MaxInstances": ("max_instances", int),
    "MaxDollarsPerHour": ("max_dollars_per_hour", float),
    "BudgetPerHour": ("budget_per_hour", float),
    "Objective": ("objective", str),
    "Routers": ("routers", int),
}
"""Parameters that there are options for, and how each is read."""


@dataclass(frozen=True, slots=True)
class Order:
    """What `up` is asked for."""

    options: Options
    parameters: Mapping[str, str]
    """Of the stack, those that were said; the others stay as they are."""
    certificates: Path | None = None
    wait_s: float = 1800.0
    unsaid: frozenset[str] = frozenset()
    """Names of options that are defaults: what they are of stays as the mesh has it."""


def bring_up(order: Order, console: Console, tell: Tell, agreed: Callable[[], bool]) -> None:
    """`agreed` is asked once the price is told, before anything is made. Raises MeshError."""
    template = Template.read()
    template.check(order.parameters)
    options = _with(order.options, order.parameters)
    home = Home.open(options.mesh, options.region, order.certificates, tell)
    before = home.stack.view()
    _check_needed(template, order.parameters, before)
    options = as_it_stands(options, order, before, home.parameters.get(TYPES_NAME) or "").checked()
    bucket = before.outputs.get("Bucket") or left_behind(home.account, home.mesh) or ""
    model = _model(options, bucket)
    one = _quote(home.account, options, order, template, before, model)
    console.print(quote_text(one))
    if not agreed():
        raise MeshError("nothing was bought")
    _allow_services(home.account)
    home.parameters.put({TYPES_NAME: options.types_text}, secret=False)
    given = _parameters(options, one, order.parameters)
    if not before.outputs and bucket:
        given.setdefault("ModelBucket", bucket)
        tell(f"the models of bucket {bucket} are there still")
    view = home.stack.deploy(template, given)
    _bring_model(options, model, view.outputs["Bucket"], tell)
    if put := home.keyring.publish(home.parameters, view.outputs["GatewayHost"]):
        tell(f"certificates of {put} roles are put where their hosts fetch them")
    _put_keys(home, tell)
    follow(home, view, tell, order.wait_s)
    console.print(where_it_answers(view, model.name), highlight=False, soft_wrap=True)


def _with(options: Options, said: Mapping[str, str]) -> Options:
    """What the stack's parameters say of what there are options for, too."""
    given: dict[str, Any] = {}
    for name, (option, read) in _OPTIONS.items():
        if name in said:
            try:
                given[option] = read(said[name])
            except ValueError:
                raise MeshError(f"--parameter {name}: {said[name][:60]!r} is no number") from None
    return replace(options, **given)


def as_it_stands(options: Options, order: Order, before: StackView, types: str) -> Options:
    """With what the mesh has of all that nobody said. The nodes that it began with are another
    matter: they are those of its model."""
    stays = {
        name: before.parameters[name]
        for name, (option, _) in _OPTIONS.items()
        if option in order.unsaid - {"nodes", "mesh"}
        and name in before.parameters.keys() - order.parameters.keys()
    }
    if "types" in order.unsaid and before.parameters:
        options = replace(options, standing_types=types)
    return _with(options, stays)


def _check_needed(template: Template, given: Mapping[str, str], before: StackView) -> None:
    for name in template.needed:
        if name not in given and name not in before.parameters:
            flag, what = _FLAGS.get(name, (f"--parameter {name}=", "the stack needs it"))
            raise MeshError(f"{flag} is needed: {what}")


def _model(options: Options, bucket: str) -> Stored:
    """As the operator has it, or as it was pushed before."""
    try:
        return stored_model(options.model, options.store)
    except MeshError:
        if not bucket:
            raise
        return stored_model(options.model, store_uri(bucket))


def _quote(
    account: Account,
    options: Options,
    order: Order,
    template: Template,
    before: StackView,
    model: Stored,
) -> Quote:
    """Of a mesh that is there already the nodes that it began with, unless others are named."""
    first = before.parameters.get("FirstNodes", "")
    if first and not options.nodes and before.parameters.get("Model") == options.model:
        options = replace(options, nodes=first).checked()
    said = template.defaults | dict(before.parameters) | dict(order.parameters)
    subnets = before.outputs.get("Subnets", "").split(",") if before.stands else []
    return quote(
        account,
        model,
        options.table,
        options.wish(options.table),
        standing_of(said, options.routers),
        zones_of(account, subnets),
    )


def _parameters(options: Options, one: Quote, said: Mapping[str, str]) -> dict[str, str]:
    return {
        "MeshName": options.mesh,
        "Model": options.model,
        "FirstNodes": one.found.first_nodes,
        "InstanceTypes": ",".join(sorted(options.table.types)),
        "MaxInstances": str(options.max_instances),
        "MaxDollarsPerHour": f"{options.max_dollars_per_hour:g}",
        "BudgetPerHour": f"{options.budget_per_hour:g}",
        "Objective": options.objective,
        "Routers": str(options.routers),
        **said,
    }


def _allow_services(account: Account) -> None:
    iam = account.client("iam")
    for name in LINKED_ROLES:
        try:
            iam.create_service_linked_role(AWSServiceName=name)
        except AwsRefusal as refusal:
            if refusal.code not in ("InvalidInput", "EntityAlreadyExists"):  # it is there
                raise


def _bring_model(options: Options, model: Stored, bucket: str, tell: Tell) -> None:
    if has(bucket, model.name, model.digest):
        tell(f"{model.name} is in bucket {bucket}")
        return
    tell(f"pushing {model.name} to bucket {bucket}")
    sent = push(model.name, options.store, bucket)
    tell(f"{sent / 1e9:.2f} GB pushed")


def _put_keys(home: Home, tell: Tell) -> None:
    """What stands in the operator's file of keys, with a first one where there is no file. Raises
    MeshError."""
    first = home.keys.with_name(FIRST_KEY_NAME)
    try:
        if key_files.first_key(home.keys, FIRST_TENANT, first):
            tell(f"a first API key is in {first}; `shunt keys --file {home.keys}` makes more")
        held = key_files.read(home.keys)
    except ShuntError as error:
        raise MeshError(f"{home.keys}: {error.message}") from None
    except OSError as error:
        raise MeshError(f"{error.filename}: {error.strerror}") from None
    home.parameters.put({KEYS_NAME: held.written().decode()}, secret=True)
    tell(f"API keys of {len(held.tenants)} tenants are put where routers fetch them")


def where_it_answers(view: StackView, model: str) -> str:
    """The gateway's addresses, and a curl line."""
    url = view.outputs["GatewayUrl"]
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    return "\n".join(
        (
            f"the mesh answers: HTTP {url}, gRPC {view.outputs['GrpcAddress']}",
            f"Try, with your key in {VARIABLE}:",
            f'  curl {url}/v1/chat/completions -H "Authorization: Bearer ${VARIABLE}"'
            " -H 'Content-Type: application/json'"
            f" -d '{json.dumps(body)}'",
        )
    )
