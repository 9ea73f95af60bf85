"""The one place where Docker is called: what is started keeps to the confinement, and what is
signalled or removed carries the mesh's label."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException
from requests.exceptions import RequestException

from services.common.errors import FailedPrecondition, NotFound, ShuntError, Unavailable
from services.launcher.core.confinement import Confinement
from services.launcher.core.containers import (
    MESH_LABEL,
    ONE_OFF_LABEL,
    PROJECT_LABEL,
    SERVICE_LABEL,
    Container,
    container_of,
    runs,
    why_ended,
)

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

LAST_LINES = 20
MESSAGE_CHARS = 300
OVERLAP_S = 2
"""Events are read again from so long before a look, so that none lies between."""
_EVENTS = ("start", "die")


class Hands:
    """Each call in a thread, for they block."""

    def __init__(self, socket: str, confinement: Confinement, *, call_timeout_s: float) -> None:
        """Raises Unavailable where Docker does not answer."""
        self._confinement = confinement
        self._mesh = confinement.mesh
        self._docker = _tried(
            lambda: docker.APIClient(base_url=socket, version="auto", timeout=call_timeout_s)
        )

    # What there is

    async def pattern(self, service: str) -> Mapping[str, Any]:
        """The container of a service of the compose file, as Docker describes it. Raises NotFound
        while there is none."""
        return await _in_a_thread(lambda: self._pattern(service))

    async def look(self) -> tuple[list[Container], list[Container]]:
        """The containers that run, and those that do not."""
        return await _in_a_thread(self._look)

    async def events(self) -> AsyncGenerator[tuple[str, Container], None]:
        """What is done to containers, from a moment ago on, until Docker's answer ends. The read
        blocks: it has a thread of its own, which nobody waits for."""
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[tuple[str, Container] | None] = asyncio.Queue()
        filters = {"type": "container", "event": list(_EVENTS), "label": self._label}
        since = int(time.time()) - OVERLAP_S
        stream = await _in_a_thread(
            lambda: self._docker.events(since=since, filters=filters, decode=True)
        )

        def hear(event: Mapping[str, Any] | None) -> None:
            happened = None if event is None else self._happened(event)
            if event is None or happened is not None:
                said.put_nowait(happened)

        def read() -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                try:
                    for event in stream:
                        loop.call_soon_threadsafe(hear, event)
                except (DockerException, RequestException, OSError, ValueError) as error:
                    _log.warning("events break off", extra={"why": str(error)})
                finally:
                    loop.call_soon_threadsafe(hear, None)

        threading.Thread(target=read, name="docker-events", daemon=True).start()
        try:
            while (happened := await said.get()) is not None:
                yield happened
        finally:
            with suppress(OSError):
                stream.close()

    # What is done

    async def start(self, name: str, body: Mapping[str, Any]) -> Container:
        """Creates and starts a container; one of the mesh that has this name and runs is it. Raises
        FailedPrecondition for what may not be, and where the name is another's, and Unavailable."""
        self._confinement.check(body)
        return await _in_a_thread(lambda: self._start(name, body))

    async def signal(self, container: Container, signal: str) -> bool:
        """Whether it ran. Raises FailedPrecondition for one that is not of the mesh."""
        return await _in_a_thread(lambda: self._signal(container.container_id, signal))

    async def bury(self, container: Container) -> str:
        """Removes a container that has ended; why it did."""
        return await _in_a_thread(lambda: self._bury(container.container_id))

    # In the thread

    @property
    def _label(self) -> list[str]:
        return [f"{MESH_LABEL}={self._mesh}"]

    def _pattern(self, service: str) -> Mapping[str, Any]:
        labels = {PROJECT_LABEL: self._mesh, SERVICE_LABEL: service, ONE_OFF_LABEL: "False"}
        filters = {"label": [f"{key}={value}" for key, value in labels.items()]}
        found = self._docker.containers(all=True, filters=filters)
        if not found:
            raise NotFound(f"project {self._mesh} has no service {service}", field="pattern")
        newest = max(found, key=lambda one: int(one.get("Created", 0)))
        described: Mapping[str, Any] = self._docker.inspect_container(newest["Id"])
        return described

    def _happened(self, event: Mapping[str, Any]) -> tuple[str, Container] | None:
        actor = event.get("Actor") or {}
        one = container_of(actor.get("ID", ""), actor.get("Attributes") or {}, self._mesh)
        return None if one is None else (str(event.get("Action", "")), one)

    def _look(self) -> tuple[list[Container], list[Container]]:
        live, ended = list[Container](), list[Container]()
        for one in self._docker.containers(all=True, filters={"label": self._label}):
            container = container_of(one["Id"], one.get("Labels") or {}, self._mesh)
            if container is not None:
                (live if runs(one.get("State", "")) else ended).append(container)
        return live, ended

    def _start(self, name: str, body: Mapping[str, Any]) -> Container:
        for mount in body["HostConfig"]["Mounts"]:
            described = self._docker.inspect_volume(mount["Source"])
            self._confinement.check_volume(mount["Source"], described)
        try:
            container_id = str(self._docker.create_container_from_config(body, name)["Id"])
        except APIError as error:
            if error.status_code != 409:
                raise
            found = self._ours(name)
            if runs(found["State"]["Status"]):
                return self._container(found)
            self._docker.remove_container(found["Id"], force=True)
            container_id = str(self._docker.create_container_from_config(body, name)["Id"])
        try:
            self._docker.start(container_id)
        except BaseException:
            self._docker.remove_container(container_id, force=True)
            raise
        return self._container({"Id": container_id, "Config": {"Labels": body["Labels"]}})

    def _signal(self, container_id: str, signal: str) -> bool:
        self._ours(container_id)
        try:
            self._docker.kill(container_id, signal)
        except APIError as error:
            if error.status_code != 409:
                raise
            return False
        return True

    def _bury(self, container_id: str) -> str:
        found = self._ours(container_id)
        said = b""
        if found["State"].get("ExitCode"):
            said = self._docker.logs(container_id, tail=LAST_LINES)
        reason = why_ended(found["State"], said.decode(errors="replace"))
        try:
            self._docker.remove_container(container_id, force=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # somebody removes it already
                raise
        return reason

    def _ours(self, container: str) -> dict[str, Any]:
        """By id or name, as Docker describes it now. Raises FailedPrecondition for one without the
        mesh's label."""
        found: dict[str, Any] = self._docker.inspect_container(container)
        self._container(found)
        return found

    def _container(self, described: Mapping[str, Any]) -> Container:
        labels = described["Config"].get("Labels") or {}
        one = container_of(str(described["Id"]), labels, self._mesh)
        if one is None:
            raise FailedPrecondition("the container is not of this mesh", field="labels")
        return one


async def _in_a_thread(call: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(_tried, call)


def _tried(call: Callable[[], Result]) -> Result:
    """What Docker answers. Raises NotFound, FailedPrecondition for what it will never do, and
    Unavailable."""
    try:
        return call()
    except ShuntError:
        raise
    except APIError as error:
        raise _refusal(error) from error
    except (DockerException, RequestException, OSError) as error:
        raise Unavailable(f"Docker does not answer: {error}"[:MESSAGE_CHARS]) from error
    except (LookupError, TypeError, ValueError) as error:
        raise Unavailable(f"Docker's answer is not one: {error!r}"[:MESSAGE_CHARS]) from error


def _refusal(error: APIError) -> ShuntError:
    message = f"Docker: {error.explanation or error}"[:MESSAGE_CHARS]
    status = int(error.status_code or 500)
    if status == 404:
        return NotFound(message)
    return FailedPrecondition(message) if status < 500 else Unavailable(message)
