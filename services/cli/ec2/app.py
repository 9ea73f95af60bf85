"""`shunt ec2`: a mesh in an AWS account, from credentials to answers, and its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.cli.ec2.files import TYPES
from services.cli.ec2.options import MESH, Options
from services.cli.layout import MODEL
from services.cli.mesh_directory import MeshError
from services.cli.told import told
from services.tensorstore.cli import DEFAULT_STORE

app = typer.Typer(help="A mesh on EC2, from credentials to answers.", no_args_is_help=True)
console = Console()
DEFAULTS = Options()

MeshOption = Annotated[str, typer.Option("--mesh", help="Its name, and its stack's.")]
RegionOption = Annotated[str, typer.Option("--region", help="Else as boto3 finds it.")]
ModelOption = Annotated[str, typer.Option("--model", help="The model to serve.")]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="SHUNT_TENSORSTORE_STORE", help="Your own store.")
]
TypesOption = Annotated[Path, typer.Option("--types", help="YAML: what may be bought.")]
NodesOption = Annotated[
    str, typer.Option("--nodes", help="TYPE:COUNT,… to begin with; else the planner chooses.")
]
ObjectiveOption = Annotated[
    str, typer.Option(help="throughput, throughput-per-cost or goodput-per-cost.")
]
BudgetOption = Annotated[float, typer.Option(help="Most dollars an hour of all nodes; 0: any.")]
InstancesOption = Annotated[int, typer.Option(help="Most nodes, whatever happens.")]
DollarsOption = Annotated[
    float, typer.Option(help="Most dollars an hour, each node at its price on demand.")
]
RoutersOption = Annotated[int, typer.Option(help="How many routers.")]
InputOption = Annotated[int, typer.Option("--input-tokens", help="Mean prompt tokens.")]
OutputOption = Annotated[int, typer.Option("--output-tokens", help="Mean output tokens.")]
RateOption = Annotated[float, typer.Option("--rate", help="Requests a second to carry.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Ask nothing.")]
CertificatesOption = Annotated[
    Path | None,
    typer.Option("--certificates", help="The authority's directory; else .shunt/ec2/MESH/…"),
]


@app.command()
def plan(
    mesh: MeshOption = MESH,
    region: RegionOption = "",
    model: ModelOption = MODEL,
    store: StoreOption = DEFAULT_STORE,
    types: TypesOption = TYPES,
    nodes: NodesOption = "",
    objective: ObjectiveOption = DEFAULTS.objective,
    budget_per_hour: BudgetOption = 0.0,
    max_instances: InstancesOption = DEFAULTS.max_instances,
    max_dollars_per_hour: DollarsOption = DEFAULTS.max_dollars_per_hour,
    routers: RoutersOption = DEFAULTS.routers,
    input_tokens: InputOption = DEFAULTS.input_tokens,
    output_tokens: OutputOption = DEFAULTS.output_tokens,
    rate: RateOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Says what a mesh would be and cost, at the prices of now, and buys nothing."""
    from services.cli.ec2.planning import planned
    from services.cli.ec2.quote import quote_json, quote_text

    options = Options(
        mesh=mesh,
        region=region,
        model=model,
        store=store,
        types=types,
        nodes=nodes,
        objective=objective,
        budget_per_hour=budget_per_hour,
        max_instances=max_instances,
        max_dollars_per_hour=max_dollars_per_hour,
        routers=routers,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rate=rate,
    )
    found = told(lambda: planned(options))
    if as_json:
        print(json.dumps(quote_json(found)))
    else:
        console.print(quote_text(found))


@app.command()
def up(
    context: typer.Context,
    mesh: MeshOption = MESH,
    region: RegionOption = "",
    model: ModelOption = MODEL,
    store: StoreOption = DEFAULT_STORE,
    types: TypesOption = TYPES,
    nodes: NodesOption = "",
    objective: ObjectiveOption = DEFAULTS.objective,
    budget_per_hour: BudgetOption = 0.0,
    max_instances: InstancesOption = DEFAULTS.max_instances,
    max_dollars_per_hour: DollarsOption = DEFAULTS.max_dollars_per_hour,
    routers: RoutersOption = DEFAULTS.routers,
    input_tokens: InputOption = DEFAULTS.input_tokens,
    output_tokens: OutputOption = DEFAULTS.output_tokens,
    rate: RateOption = 0.0,
    gateway_cidr: Annotated[str, typer.Option(help="Whose addresses may call the gateway.")] = "",
    operator_cidr: Annotated[
        str, typer.Option(help="Whose may reach the controller, with an operator's certificate.")
    ] = "",
    services_image: Annotated[str, typer.Option(help="Container image of the services.")] = "",
    node_image: Annotated[str, typer.Option(help="Container image of a node.")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the stack; again: more.")
    ] = None,
    parameters: Annotated[
        Path | None, typer.Option(help="JSON: parameters of the stack, as AWS's commands take it.")
    ] = None,
    certificates: CertificatesOption = None,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for answers.")] = 1800.0,
    yes: YesOption = False,
) -> None:
    """Makes a mesh, or what is lacking of it, and returns when it answers. Says what it costs, and
    asks, before it buys. What is not said stays as the mesh has it."""
    from services.cli.ec2.template import parsed_parameters
    from services.cli.ec2.up import Order, bring_up

    options = Options(
        mesh=mesh,
        region=region,
        model=model,
        store=store,
        types=types,
        nodes=nodes,
        objective=objective,
        budget_per_hour=budget_per_hour,
        max_instances=max_instances,
        max_dollars_per_hour=max_dollars_per_hour,
        routers=routers,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rate=rate,
    )
    named = {
        "GatewayCidr": gateway_cidr,
        "OperatorCidr": operator_cidr,
        "ServicesImage": services_image,
        "NodeImage": node_image,
    }

    def start() -> None:
        given = parsed_parameters(parameter or [], parameters)
        given |= {name: value for name, value in named.items() if value}
        order = Order(options, given, certificates, wait_s, unsaid(context))
        bring_up(order, console, say, lambda: yes or agreed("Buy this?"))

    told(start)


@app.command()
def status(
    mesh: MeshOption = MESH,
    region: RegionOption = "",
    certificates: CertificatesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows the stack, its machines, what they cost, and whether the mesh answers."""
    from services.cli.ec2.home import Home
    from services.cli.ec2.status import ec2_status, ec2_status_table

    found = told(lambda: ec2_status(Home.open(mesh, region, certificates, say)))
    if as_json:
        print(json.dumps(found))
    else:
        console.print(ec2_status_table(found))


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="The model, as your store names it.")],
    mesh: MeshOption = MESH,
    region: RegionOption = "",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Copies a model to the mesh's bucket; what is there already is not sent."""
    from services.cli.ec2.bucket import push as copy
    from services.cli.ec2.home import Home

    def start() -> str:
        bucket = Home.open(mesh, region, None, say).stack.standing().outputs["Bucket"]
        return f"{model} is in bucket {bucket}, {copy(model, store, bucket) / 1e9:.2f} GB were sent"

    say(told(start))


@app.command()
def down(
    mesh: MeshOption = MESH,
    region: RegionOption = "",
    certificates: CertificatesOption = None,
    delete_models: Annotated[
        bool, typer.Option("--delete-models", help="The bucket, too, with all that is in it.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Ends the mesh: nodes, hosts, stack, keys. Says what it ended, and what it leaves."""
    from services.cli.ec2.down import take_down
    from services.cli.ec2.home import Home

    def start() -> list[str]:
        home = Home.open(mesh, region, certificates, say)
        models = ", and delete its models" if delete_models else ""
        if not (yes or agreed(f"End mesh {mesh} in {home.account.region}{models}?")):
            raise MeshError("nothing was ended")
        ended = take_down(home, say, delete_models=delete_models)
        return [f"no mesh {mesh} is there", *ended.lines] if ended.is_nothing else ended.lines

    for line in told(start):
        say(line)


def unsaid(context: typer.Context) -> frozenset[str]:
    """Names of options that are defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name for name, source in sources.items() if source and source.name == "DEFAULT"
    )


def agreed(question: str) -> bool:
    """Asks at the terminal; where there is none, nobody has agreed. Raises MeshError."""

    if not sys.stdin.isatty():
        raise MeshError("nobody is there to be asked: --yes agrees beforehand")
    return typer.confirm(question)


def say(line: str) -> None:
    """A line of what happens."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
