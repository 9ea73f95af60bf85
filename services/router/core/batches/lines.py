"""Lines of a batch's input file, and what its results look like.

An input line is {"custom_id", "method": "POST", "url": the batch's endpoint, "body"}; a line of
results {"id", "custom_id", "response" or null, "error" or null} (OpenAI's Batch API).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument
from services.router.core.batches.batch import MAX_FAULTS, MAX_LINES, Fault
from services.router.http.json_body import parse_object, shown

MAX_CUSTOM_ID_CHARS = 512
_KNOWN = frozenset(("custom_id", "method", "url", "body"))


class LineFault(InvalidArgument):
    """A line that cannot be asked; `code` is as the Batch API names it."""

    def __init__(self, code: str, message: str, field: str) -> None:
        super().__init__(message, field=field)
        self.code = code


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    number: int
    """From 0, of those that are not blank."""
    custom_id: str
    body: dict[str, Any]

    @property
    def model(self) -> str:
        """The model that it names; empty where it names none."""
        model = self.body.get("model")
        return model if isinstance(model, str) else ""


def line_of(number: int, data: bytes, endpoint: str) -> Line:
    """Raises LineFault."""
    try:
        fields = parse_object(data)
    except InvalidArgument as error:
        raise LineFault("invalid_json_line", error.message, "") from None
    custom_id, body = fields.get("custom_id"), fields.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise LineFault(
            "missing_required_parameter" if custom_id is None else "invalid_value",
            f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters",
            "custom_id",
        )
    if fields.get("method") != "POST":
        raise LineFault("invalid_method", "method must be POST", "method")
    if fields.get("url") != endpoint:
        raise LineFault(
            "mismatched_url",
            f"url must be the batch's endpoint, {endpoint}, not {shown(fields.get('url'))}",
            "url",
        )
    if not isinstance(body, dict):
        raise LineFault("missing_required_parameter", "body must be an object", "body")
    unknown = next((name for name in fields if name not in _KNOWN), None)
    if unknown is not None:
        raise LineFault("unknown_parameter", f"{shown(unknown)} is not known here", unknown[:64])
    return Line(number, custom_id, body)


class Inspection:
    """Looks at every line before the first is asked, and keeps little of each."""

    def __init__(self, endpoint: str) -> None:
        self.model = ""
        self.total = 0
        self.faults: list[Fault] = []
        self._endpoint = endpoint
        self._ids: set[bytes] = set()
        self._broken = False

    def look_at(self, data: bytes) -> None:
        """One line that is not blank."""
        number, self.total = self.total, self.total + 1
        if self.total > MAX_LINES:
            if self.total == MAX_LINES + 1:
                said = f"the file has over {MAX_LINES} lines"
                self.faults.insert(0, Fault("too_many_tasks", said, self.total))
            return
        try:
            self._check(line_of(number, data, self._endpoint))
        except LineFault as fault:
            self.faults.append(Fault(fault.code, fault.message, number + 1, fault.field or None))

    def broken(self, fault: LineFault) -> None:
        """The next line has no end in sight."""
        self.faults.append(Fault(fault.code, fault.message, self.total + 1))
        self._broken = True

    @property
    def hopeless(self) -> bool:
        """As many faults were found as are told, or nothing can be told of what follows."""
        return self._broken or len(self.faults) >= MAX_FAULTS

    def end(self) -> None:
        """There are no more lines."""
        if not self.total:
            self.faults.append(Fault("empty_file", "the file has no lines"))

    def _check(self, line: Line) -> None:
        digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
        if digest in self._ids:
            raise LineFault(
                "duplicate_custom_id",
                f"custom_id {shown(line.custom_id)} occurs twice",
                "custom_id",
            )
        self._ids.add(digest)
        if line.body.get("stream"):
            raise LineFault("invalid_value", "a batch's answers are not streamed", "body.stream")
        if not line.model:
            raise LineFault(
                "missing_required_parameter", "body.model must be a string", "body.model"
            )
        self.model = self.model or line.model
        if line.model != self.model:
            raise LineFault(
                "mismatched_model",
                f"a file asks one model, {self.model[:64]}, not {line.model[:64]} too",
                "body.model",
            )


class LineCutter:
    """Cuts bytes that come in pieces into lines."""

    def __init__(self, max_line_bytes: int) -> None:
        self._rest = bytearray()
        self._most = max_line_bytes
        self._number = 0

    def lines(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Those that are whole now, with their numbers; blank ones count for nothing. Raises
        LineFault for one that is too long."""
        self._rest += data
        end = self._rest.rfind(b"\n")
        if end >= 0:
            whole = bytes(self._rest[:end])
            del self._rest[: end + 1]
            for line in whole.split(b"\n"):
                yield from self._told(line)
        self._check(len(self._rest))

    def last(self) -> Iterator[tuple[int, bytes]]:
        """What stands behind the last line feed."""
        yield from self._told(bytes(self._rest))
        self._rest.clear()

    def _told(self, line: bytes) -> Iterator[tuple[int, bytes]]:
        if line.strip():
            self._check(len(line))
            number, self._number = self._number, self._number + 1
            yield number, line

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._most:
            raise LineFault(
                "line_too_large", f"line {self._number + 1} has over {self._most} bytes", ""
            )


def request_id_of(batch_id: str, number: int) -> str:
    """The `id` of a line's result."""
    return f"batch_req_{batch_id.removeprefix('batch_')}{number:05x}"


def generation_id_of(batch_id: str, number: int) -> str:
    """The generation that answers a line: whoever asks for it again joins that."""
    return "b" + hashlib.sha256(request_id_of(batch_id, number).encode()).hexdigest()[:32]


def response_line(batch_id: str, line: Line, status: int, request_id: str, body: bytes) -> bytes:
    """A line's answer, an error's too; `body` is its JSON."""
    head = json.dumps({"status_code": status, "request_id": request_id})[:-1]
    response = head.encode() + b', "body": ' + body + b"}"
    return _result(batch_id, line, response, b"null")


def unanswered_line(batch_id: str, line: Line, code: str, message: str) -> bytes:
    """Of a line that was not answered before the batch ended."""
    return _result(batch_id, line, b"null", json.dumps({"code": code, "message": message}).encode())


def _result(batch_id: str, line: Line, response: bytes, error: bytes) -> bytes:
    names = {"id": request_id_of(batch_id, line.number), "custom_id": line.custom_id}
    head = json.dumps(names, ensure_ascii=False)[:-1].encode()
    return head + b', "response": ' + response + b', "error": ' + error + b"}\n"
