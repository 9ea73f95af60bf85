"""Files and batches at the HTTP door: what serves them, and their routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.common.errors import NotFound
from services.router.batches.batches import Batches
from services.router.batches.runner import BatchRunner
from services.router.documents import DocumentClient
from services.router.files.files import Files
from services.router.files.place import Place
from services.router.http.batches import BatchRoutes
from services.router.http.exchange import Exchange
from services.router.http.files import FileRoutes
from services.router.router import Router
from services.router.settings import RouterSettings

Handler = Callable[[Exchange], Awaitable[None]]


class Offline:
    """What one router has of files and batches."""

    def __init__(
        self,
        router: Router,
        place: Place,
        documents: DocumentClient,
        settings: RouterSettings,
        wall_clock: Callable[[], float],
    ) -> None:
        self.files = Files(place, documents, wall_clock)
        self.runner = BatchRunner(router, documents, self.files, settings, wall_clock)
        self.batches = Batches(documents, self.files, self.runner.wake, wall_clock)


def offline_routes(
    offline: Offline | None, settings: RouterSettings
) -> list[tuple[str, Handler, str]]:
    """Path, handler and method of each; where there are no files they say so."""
    if offline is None:
        return [
            (path, _without, method)
            for path in ("/v1/files", "/v1/batches")
            for method in ("GET", "POST")
        ]
    files, batches = FileRoutes(offline.files, settings), BatchRoutes(offline.batches)
    return [
        ("/v1/files", files.create, "POST"),
        ("/v1/files", files.list, "GET"),
        ("/v1/files/{id}/content", files.content, "GET"),
        ("/v1/files/{id}", files.get, "GET"),
        ("/v1/files/{id}", files.delete, "DELETE"),
        ("/v1/batches", batches.create, "POST"),
        ("/v1/batches", batches.list, "GET"),
        ("/v1/batches/{id}/cancel", batches.cancel, "POST"),
        ("/v1/batches/{id}", batches.get, "GET"),
    ]


async def _without(exchange: Exchange) -> None:
    raise NotFound("this mesh keeps no files: SHUNT_ROUTER_FILES names no place for them")
