"""`shunt batch`: requests by the file, answered when the mesh has time for them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import SplitResult, quote, urlsplit

import httpx2
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.mesh_directory import MeshDirectory, MeshError
from services.cli.told import complain, told
from services.common import api_keys
from services.common.results import check_place, discard

app = typer.Typer(help="Requests by the file, answered within a day.", no_args_is_help=True)
T = TypeVar("T")
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
        _check_output(output)
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
        _check_output(output)
        found = routers.ask("GET", f"/v1/batches/{_named(batch)}")
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
    found = told(lambda: Routers(data_dir, url).ask("POST", f"/v1/batches/{_named(batch)}/cancel"))
    _tell(found, as_json, None, data_dir, url)


def _named(batch: str) -> str:
    """A batch in a path: whatever stands in its name, it is one part of it."""
    return quote(batch, safe="") or "-"


def _check_output(path: Path | None) -> None:
    """Before a wait that may take a day; raises MeshError."""
    if path is not None:
        try:
            check_place(path)
        except OSError as error:
            raise MeshError(f"--output: {path}: {error.strerror}") from None


class Routers:
    """Whichever router of a mesh answers."""

    def __init__(self, data_dir: Path, url: str) -> None:
        """Raises MeshError when there is none."""
        if url:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
                raise MeshError(f"--url: {url[:200]} is no address of a router: http://HOST:PORT")
            self._urls = [url.rstrip("/")]
        else:
            services = MeshDirectory(data_dir).running().services
            self._urls = [service.http for service in services if service.http is not None]
        self._turn = 0

    def ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        """The answer. Raises MeshError for an error, or when no router answers for AWAY_S."""

        def receive(response: httpx2.Response) -> dict[str, Any]:
            response.read()
            try:
                answer = response.json()
            except ValueError:
                answer = None
            if not isinstance(answer, dict) or "id" not in answer:
                raise MeshError(f"{response.url}: what answers there is no router")
            return answer

        return self._asked(receive, method, path, **sent)

    def write(self, file_id: str, target: Path) -> None:
        """A file's bytes, whole or not at all. Raises MeshError."""
        partial = target.with_name(f".{target.name}.{os.getpid()}")

        def receive(response: httpx2.Response) -> None:
            discard(partial)
            with partial.open("xb") as file:  # whatever lies there by then is not followed
                for part in response.iter_bytes():
                    file.write(part)
            partial.replace(target)

        try:
            self._asked(receive, "GET", f"/v1/files/{file_id}/content")
        except OSError as error:
            raise MeshError(f"{target}: {error.strerror}") from None
        finally:
            discard(partial)

    def _asked(
        self, receive: Callable[[httpx2.Response], T], method: str, path: str, **sent: Any
    ) -> T:
        """What `receive` makes of the answer; of another one where it breaks off."""
        deadline_s, waits = time.monotonic() + AWAY_S, False
        while True:
            url = self._urls[self._turn % len(self._urls)]
            timeout = httpx2.Timeout(30.0, write=UPLOAD_S)
            try:
                with (
                    httpx2.Client(headers=api_keys.headers(), timeout=timeout) as client,
                    client.stream(method, url + path, **sent) as response,
                ):
                    if response.status_code == 200:
                        return receive(response)
                    response.read()
                    again = response.status_code in (429, 503)
                    said = _message(response)
            except httpx2.TransportError as error:
                again, said = True, f"{url}: {error or type(error).__name__}"
            if not again or time.monotonic() > deadline_s:
                raise MeshError(said)
            if not waits:
                complain(f"{said}; asking on for {AWAY_S:g} s")
                waits = True
            for _, content in sent.get("files", {}).values():
                content.seek(0)
            self._turn += 1
            time.sleep(LOOK_S)


def _has_port(parts: SplitResult) -> bool:
    """Or none at all, which is the scheme's."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _message(response: httpx2.Response) -> str:
    try:
        error = response.json()["error"]
        named = f"{error['param']}: " if error.get("param") else ""
        advice = f"; {api_keys.ADVICE}" if response.status_code == 401 else ""
        return f"{named}{error['message']}{advice}"
    except (ValueError, KeyError, TypeError):
        return f"the router answered {response.status_code}"


def _watched(routers: Routers, batch: dict[str, Any], quietly: bool) -> dict[str, Any]:
    """The batch once it has ended."""
    shown = nullcontext(_unseen) if quietly or not console.is_terminal else _bar(batch["id"])
    with shown as show:
        try:
            while batch["status"] not in ENDS:
                show(batch)
                time.sleep(LOOK_S)
                batch = routers.ask("GET", f"/v1/batches/{batch['id']}")
        except KeyboardInterrupt:  # whoever waits no longer needs its name, to come back to it
            complain(
                f"{batch['id']} goes on; `shunt batch status {batch['id']}` tells how far it is"
            )
            raise
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
