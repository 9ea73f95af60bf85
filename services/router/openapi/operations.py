"""What each route of the HTTP door takes and answers, for the document that describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.router import deadlines
from services.router.batches.requests import BATCH
from services.router.openai.fields import CHAT, COMPLETION, DETOKENIZE, TOKENIZE, RequestField
from services.router.openai.responses.fields import RESPONSE

_REFUSED = (400, 404)
_KEPT = (400, 404, 503)
_WHILE_READING = (400, 404, 408, 413, 415, 429, 431, 500, 503)
_WHILE_ASKING = (400, 404, 408, 409, 413, 415, 429, 431, 500, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route."""

    name: str
    """What generated clients call it."""
    does: str
    answer: str
    """The schema of a whole answer; empty: it has no JSON."""
    body: Mapping[str, RequestField] | None = None
    """Fields of the JSON that it takes."""
    uploads: bool = False
    """It takes a file in a form."""
    streams: bool = False
    """An answer may be a stream of events."""
    about_generation: bool = False
    """An answer names a generation in its headers."""
    errors: tuple[int, ...] = ()
    media_type: str = "application/json"
    parameters: tuple[str, ...] = ()
    """Of headers and of the query, those that mean something here."""


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "createChatCompletion",
        "Answers a conversation, streamed or whole.",
        "ChatCompletion",
        CHAT,
        streams=True,
        about_generation=True,
        errors=_WHILE_ASKING,
        parameters=("idempotency-key", deadlines.HEADER),
    ),
    ("POST", "/v1/completions"): Operation(
        "createCompletion",
        "Goes on with a text, streamed or whole.",
        "Completion",
        COMPLETION,
        streams=True,
        about_generation=True,
        errors=_WHILE_ASKING,
        parameters=("idempotency-key", deadlines.HEADER),
    ),
    ("POST", "/v1/responses"): Operation(
        "createResponse",
        "Answers a conversation, streamed, whole or in the background; kept for long.",
        "Response",
        RESPONSE,
        streams=True,
        about_generation=True,
        errors=_WHILE_ASKING,
        parameters=("idempotency-key", deadlines.HEADER),
    ),
    ("GET", "/v1/responses/{id}"): Operation(
        "retrieveResponse",
        "A response as it stands, or its events behind one.",
        "Response",
        streams=True,
        about_generation=True,
        errors=(*_REFUSED, 409, 429, 500, 503),
        parameters=("stream", "starting_after", "response event"),
    ),
    ("DELETE", "/v1/responses/{id}"): Operation(
        "deleteResponse",
        "Ends a response, if it runs, and deletes it.",
        "Deleted",
        about_generation=True,
        errors=_KEPT,
    ),
    ("POST", "/v1/responses/{id}/cancel"): Operation(
        "cancelResponse",
        "Ends a response that runs.",
        "Response",
        about_generation=True,
        errors=_KEPT,
    ),
    ("GET", "/v1/responses/{id}/input_items"): Operation(
        "listInputItems",
        "Lists the conversation that a response answers.",
        "List",
        about_generation=True,
        errors=_KEPT,
        parameters=("order", "after", "limit of items"),
    ),
    ("GET", "/v1/models"): Operation("listModels", "Lists what can be asked for.", "ModelList"),
    ("GET", "/v1/models/{model}"): Operation(
        "retrieveModel", "Describes one model.", "Model", errors=(404,)
    ),
    ("GET", "/v1/generations/{id}"): Operation(
        "retrieveGeneration",
        "Tells where a generation stands, without its text.",
        "Generation",
        about_generation=True,
        errors=(*_REFUSED, 410, 503),
    ),
    ("GET", "/v1/generations/{id}/stream"): Operation(
        "resumeGeneration",
        "Goes on with a generation's stream behind an event, at any router.",
        "",
        streams=True,
        about_generation=True,
        errors=(*_REFUSED, 409, 410, 429, 500, 503),
        parameters=("last-event-id",),
    ),
    ("DELETE", "/v1/generations/{id}"): Operation(
        "deleteGeneration",
        "Ends a generation for good.",
        "Cancelled",
        about_generation=True,
        errors=(400, 503),
    ),
    ("POST", "/v1/generations/{id}/cancel"): Operation(
        "cancelGeneration",
        "Ends a generation for good.",
        "Cancelled",
        about_generation=True,
        errors=(400, 503),
    ),
    ("POST", "/v1/files"): Operation(
        "createFile",
        "Keeps a file, for batches.",
        "File",
        uploads=True,
        errors=(400, 404, 408, 413, 415, 503),
    ),
    ("GET", "/v1/files"): Operation(
        "listFiles",
        "Lists files, newest first.",
        "List",
        errors=_KEPT,
        parameters=("after", "limit of files"),
    ),
    ("GET", "/v1/files/{id}"): Operation("retrieveFile", "Describes a file.", "File", errors=_KEPT),
    ("DELETE", "/v1/files/{id}"): Operation(
        "deleteFile", "Deletes a file.", "Deleted", errors=_KEPT
    ),
    ("GET", "/v1/files/{id}/content"): Operation(
        "downloadFile",
        "A file's bytes.",
        "",
        errors=_KEPT,
        media_type="application/octet-stream",
    ),
    ("POST", "/v1/batches"): Operation(
        "createBatch",
        "Asks every line of a file, when there is room for it.",
        "Batch",
        BATCH,
        errors=(400, 404, 408, 409, 413, 415, 431, 503),
        parameters=("idempotency-key",),
    ),
    ("GET", "/v1/batches"): Operation(
        "listBatches",
        "Lists batches, newest first.",
        "List",
        errors=_KEPT,
        parameters=("after", "limit of batches"),
    ),
    ("GET", "/v1/batches/{id}"): Operation(
        "retrieveBatch", "Tells how far a batch is.", "Batch", errors=_KEPT
    ),
    ("POST", "/v1/batches/{id}/cancel"): Operation(
        "cancelBatch", "Ends a batch; what was answered stays.", "Batch", errors=(*_KEPT, 409)
    ),
    ("POST", "/tokenize"): Operation(
        "tokenize",
        "Tells what a prompt or a conversation is to a model, as vLLM does.",
        "Tokens",
        TOKENIZE,
        errors=_WHILE_READING,
    ),
    ("POST", "/detokenize"): Operation(
        "detokenize",
        "Tells what text ids stand for, as vLLM does.",
        "Text",
        DETOKENIZE,
        errors=_WHILE_READING,
    ),
    ("GET", "/version"): Operation("version", "Tells what runs here.", "Version"),
    ("GET", "/health"): Operation("health", "As readyz, by the name that vLLM has for it.", "Any"),
    ("GET", "/openapi.json"): Operation("describe", "This document.", "Any"),
    ("GET", "/healthz"): Operation("alive", "Tells that the process lives.", "Any"),
    ("GET", "/readyz"): Operation(
        "ready", "Tells whether requests are taken; 503 says why not.", "Any"
    ),
    ("GET", "/metrics"): Operation(
        "metrics", "Figures for Prometheus.", "", media_type="text/plain"
    ),
}
"""By method and path."""
