"""The OpenAPI document of the HTTP door: its routes, and what the tables say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from services.common.logs import REQUEST_ID_HEADER
from services.router import deadlines
from services.router.http import batches, files, responses
from services.router.http.errors import MEANINGS
from services.router.http.guard import OPEN_PATHS
from services.router.openapi.operations import OPERATIONS, Operation
from services.router.openapi.schemas import ANSWERS, body_of

DISTRIBUTION = "shuntserve"
_SCHEME = "key"


@cache
def release() -> str:
    """The version of what runs here."""
    return version(DISTRIBUTION)


def document(routes: Iterable[tuple[str, str]], *, asks_for_keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1 for those of these methods and paths that are described."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path in routes:
        shown = path.replace(":path}", "}")
        operation = OPERATIONS.get((method, shown))
        if operation is not None:
            said = _operation(shown, operation)
            if asks_for_keys and path not in OPEN_PATHS:
                said["security"] = [{_SCHEME: []}]
                said["responses"]["401"] = _error(401)
            paths.setdefault(shown, {})[method.lower()] = said
    schemes = {_SCHEME: {"type": "http", "scheme": "bearer"}} if asks_for_keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ShuntServe",
            "version": release(),
            "description": "OpenAI's completion APIs over a mesh of spot GPUs.",
        },
        "paths": paths,
        "components": {
            "schemas": {**ANSWERS, **_bodies()},
            "headers": _HEADERS,
            "securitySchemes": schemes,
        },
    }


def _bodies() -> dict[str, Any]:
    return {
        _body_name(operation): body_of(operation.body)
        for operation in OPERATIONS.values()
        if operation.body is not None
    }


def _body_name(operation: Operation) -> str:
    return operation.name[0].upper() + operation.name[1:] + "Body"


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.does,
        "responses": {
            "200": _answer(operation),
            **{str(status): _error(status) for status in operation.errors},
        },
    }
    parameters = [*_in_path(path), *map(_PARAMETERS.__getitem__, operation.parameters)]
    if parameters:
        said["parameters"] = parameters
    if operation.uploads:
        schema = {"$ref": "#/components/schemas/Upload"}
        content = {"multipart/form-data": {"schema": schema}}
        said["requestBody"] = {"required": True, "content": content}
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{_body_name(operation)}"}
        said["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return said


def _answer(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer:
        schema = {"$ref": f"#/components/schemas/{operation.answer}"}
        content[operation.media_type] = {"schema": schema}
    elif not operation.streams:
        content[operation.media_type] = {"schema": {"type": "string"}}
    if operation.streams:
        content["text/event-stream"] = {}
    names = ["x-request-id", *(["x-generation-id"] if operation.about_generation else [])]
    return {"description": operation.does, "headers": _named(names), "content": content}


def _error(status: int) -> dict[str, Any]:
    names = ["x-request-id", *(["retry-after", "retry-after-ms"] if status in (429, 503) else [])]
    return {
        "description": MEANINGS[status],
        "headers": _named(names),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def _named(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _in_path(path: str) -> list[dict[str, Any]]:
    parts = (part for part in path.split("/") if part.startswith("{"))
    return [
        {"name": part[1:-1], "in": "path", "required": True, "schema": _PATH_PARTS[part[1:-1]]}
        for part in parts
    ]


_PATH_PARTS: Mapping[str, Any] = {
    "id": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    "model": {"type": "string", "minLength": 1},
}
_HEADERS: Mapping[str, Any] = {
    REQUEST_ID_HEADER: {
        "description": "The client's own, or one that the router draws.",
        "required": True,
        "schema": {"type": "string"},
    },
    "x-generation-id": {
        "description": "The generation, to come back to.",
        "required": True,
        "schema": {"type": "string"},
    },
    "retry-after-ms": {
        "description": "The same in milliseconds.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "retry-after": {
        "description": "Seconds after which asking again may help.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
}


def _limit(most: int) -> dict[str, Any]:
    return {
        "name": "limit",
        "in": "query",
        "description": "Most that are listed.",
        "schema": {"type": "integer", "minimum": 1, "maximum": most},
    }


_PARAMETERS: Mapping[str, Any] = {
    "after": {
        "name": "after",
        "in": "query",
        "description": "The last one of the page before.",
        "schema": {"type": "string"},
    },
    "limit of files": _limit(files.MAX_PAGE),
    "limit of batches": _limit(batches.MAX_PAGE),
    "limit of items": _limit(responses.MAX_PAGE),
    "order": {
        "name": "order",
        "in": "query",
        "description": "Newest first, or oldest first.",
        "schema": {"type": "string", "enum": ["desc", "asc"]},
    },
    "stream": {
        "name": "stream",
        "in": "query",
        "description": "Events are wanted.",
        "schema": {"type": "boolean"},
    },
    "starting_after": {
        "name": "starting_after",
        "in": "query",
        "description": "The number of the last event seen; needs stream=true.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 1 << 53},
    },
    "idempotency-key": {
        "name": "idempotency-key",
        "in": "header",
        "description": "Names the generation: who asks again by it joins what the first ask began.",
        "schema": {"type": "string", "maxLength": 255},
    },
    deadlines.HEADER: {
        "name": deadlines.HEADER,
        "in": "header",
        "description": "Milliseconds from now by which the first token is wanted; what cannot keep "
        "it is refused at once, with the time to come back.",
        "schema": {"type": "string", "pattern": deadlines.PATTERN},
    },
    "response event": {
        "name": "last-event-id",
        "in": "header",
        "description": "The id of the last event seen; goes before starting_after.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,16}(:[0-9]{1,9}-[0-9a-f]{8})?$"},
    },
    "last-event-id": {
        "name": "last-event-id",
        "in": "header",
        "description": "The last event seen; absent, all is told again.",
        "schema": {"type": "string", "pattern": "^[0-9,]+-[0-9a-f]{8}(\\.end)?$"},
    },
}
