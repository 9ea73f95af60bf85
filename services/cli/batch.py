"""`shunt batch`: requests by the file, answered when the mesh has time for them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.told import told
from services.common import api_keys

app = typer.Typer(help="Requests by the file, answered within a day.", no_args_is_help=True)
console = Console()
ENDPOINT = "/v1/chat/completions"
LOOK_S = 0.5
AWAY_S = 60.0
"""Routers that do not answer are asked again for so long."""
UPLOAD_S = 3600.0
ENDS = ("completed", "failed", "expired", "cancelled")

DataDir = Annotated[Path, typer.Option("--data-dir", help="Of the mesh that runs here.")]
Url = Annotated[
    str, typer.Option("--url", help="A router elsewhere: http://HOST:PORT; else the mesh's own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts: the batch as the API has it.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the answers here once it has ended.")
]
DEFAULT_DATA_DIR = Path(".shunt")


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="A JSON object a line; see docs/http-api.md.")],
    endpoint: Annotated[str, typer.Option(help="What every line asks.")] = ENDPOINT,
    wait: Annotated[bool, typer.Option(help="Return when it has ended.")] = True,
    output: Output = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    url: Url = "",
    as_json: AsJson = False,
) -> None:
    """Sends a file of requests, and shows how far they are."""

    def act() -> dict[str, Any]:
        routers = Routers(data_dir, url)
        try:
            with file.open("rb") as content:
                sent = routers.ask(
                    "POST",
                    "/v1/files",
                    files={"file": (file.name, content)},
                    data={"purpose": "batch"},
                )
        except OSError as error:
            raise MeshError(f"{file}: {error.strerror}") from None
        asked = {"input_file_id": sent["id"], "endpoint": endpoint, "completion_window": "24h"}
        key = {"idempotency-key": sent["id"]}  # asked again, it is the same batch
        batch = routers.ask("POST", "/v1/batches", json=asked, headers=key)
        return _watched(routers, batch, as_json) if wait else batch

    _tell(told(act), as_json, output, data_dir, url)


@app.command()
def status(
    batch: Annotated[str, typer.Argument(help="The batch, as `submit` names it.")],
    wait: Annotated[bool, typer.Option(help="Return when it has ended.")] = False,
    output: Output = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    url: Url = "",
    as_json: AsJson = False,
) -> None:
    """Says how far a batch is."""

    def act() -> dict[str, Any]:
        routers = Routers(data_dir, url)
        found = routers.ask("GET", f"/v1/batches/{batch}")
        return _watched(routers, found, as_json) if wait else found

    _tell(told(act), as_json, output, data_dir, url)


@app.command()
def cancel(
    batch: Annotated[str, typer.Argument(help="The batch, as `submit` names it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    url: Url = "",
    as_json: AsJson = False,
) -> None:
    """Asks nothing more of a batch; what was done is kept."""
    found = told(lambda: Routers(data_dir, url).ask("POST", f"/v1/batches/{batch}/cancel"))
    _tell(found, as_json, None, data_dir, url)


class Routers:
    """Whichever router of a mesh answers."""

    def __init__(self, data_dir: Path, url: str) -> None:
        """Raises MeshError when there is none."""
        if url:
            self._urls = [url.rstrip("/")]
        else:
            services = MeshDirectory(data_dir).running().services
            self._urls = [service.http for service in services if service.http is not None]
        self._turn = 0

    def ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        """The answer. Raises MeshError for an error, or when no router answers for AWAY_S."""
        with self._answered(method, path, **sent) as response:
            response.read()
            answer: dict[str, Any] = response.json()
            return answer

    def write(self, file_id: str, target: Path) -> None:
        """A file's bytes. Raises MeshError."""
        with self._answered("GET", f"/v1/files/{file_id}/content") as response:
            try:
                with target.open("wb") as file:
                    for part in response.iter_bytes():
                        file.write(part)
            except OSError as error:
                raise MeshError(f"{target}: {error.strerror}") from None

    @contextmanager
    def _answered(self, method: str, path: str, **sent: Any) -> Iterator[httpx2.Response]:
        deadline_s = time.monotonic() + AWAY_S
        while True:
            url = self._urls[self._turn % len(self._urls)]
            timeout = httpx2.Timeout(30.0, write=UPLOAD_S)
            try:
                with (
                    httpx2.Client(headers=api_keys.headers(), timeout=timeout) as client,
                    client.stream(method, url + path, **sent) as response,
                ):
                    if response.status_code == 200:
                        yield response
                        return
                    response.read()
                    again = response.status_code in (429, 503)
                    said = _message(response)
            except httpx2.TransportError as error:
                again, said = True, f"{url}: {error}"
            if not again or time.monotonic() > deadline_s:
                raise MeshError(said)
            for _, content in sent.get("files", {}).values():
                content.seek(0)
            self._turn += 1
            time.sleep(LOOK_S)


def _message(response: httpx2.Response) -> str:
    try:
        error = response.json()["error"]
        named = f"{error['param']}: " if error.get("param") else ""
        return f"{named}{error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the router answered {response.status_code}"


def _watched(routers: Routers, batch: dict[str, Any], quietly: bool) -> dict[str, Any]:
    """The batch once it has ended."""
    shown = nullcontext(_unseen) if quietly or not console.is_terminal else _bar(batch["id"])
    with shown as show:
        while batch["status"] not in ENDS:
            show(batch)
            time.sleep(LOOK_S)
            batch = routers.ask("GET", f"/v1/batches/{batch['id']}")
        show(batch)
    return batch


def _unseen(batch: dict[str, Any]) -> None: ...


@contextmanager
def _bar(batch_id: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(batch_id, total=None, failed="")

        def show(batch: dict[str, Any]) -> None:
            counts = batch["request_counts"]
            failed = f"{counts['failed']} failed" if counts["failed"] else ""
            progress.update(
                task,
                description=f"{batch_id} {batch['status']}",
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
                failed=failed,
            )

        yield show


def _tell(
    batch: dict[str, Any], as_json: bool, output: Path | None, data_dir: Path, url: str
) -> None:
    """What it is, and, where it was asked for, its answers; status 1 for one that has failed."""
    output_file_id = batch["output_file_id"]
    if output is not None and output_file_id is not None:
        told(lambda: Routers(data_dir, url).write(output_file_id, output))
    if as_json:
        print(json.dumps(batch))
    else:
        console.print("\n".join(described(batch)), highlight=False, soft_wrap=True, markup=False)
    if batch["status"] == "failed":
        sys.exit(1)


def described(batch: dict[str, Any]) -> list[str]:
    """A batch in lines for people."""
    counts = batch["request_counts"]
    done = counts["completed"] + counts["failed"]
    lines = [f"{batch['id']} {batch['status']}: {done} of {counts['total']} lines"]
    if counts["failed"]:
        lines[0] += f", {counts['failed']} of them failed"
    for name, what in (("output_file_id", "answers"), ("error_file_id", "failures")):
        if batch[name] is not None:
            lines.append(f"{what}: GET /v1/files/{batch[name]}/content")
    for fault in (batch["errors"] or {"data": []})["data"]:
        where = "" if fault["line"] is None else f"line {fault['line']}: "
        lines.append(f"{where}{fault['message']}")
    return lines
