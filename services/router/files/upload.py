"""A multipart body, read as it comes: its fields, and the bytes of its one file (RFC 7578)."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.common.errors import InvalidArgument

MEDIA_TYPE = "multipart/form-data"
MAX_FIELD_BYTES = 1024
MAX_PARTS = 16
MAX_FILENAME_CHARS = 255
_FILE = "file"


@dataclass(slots=True)
class _Part:
    name: str = ""
    filename: str = ""
    value: bytearray = field(default_factory=bytearray)


class Upload:
    """Holds no more of the file than one call of `feed` brought."""

    def __init__(self, content_type: str) -> None:
        """Raises InvalidArgument for a header without a boundary."""
        media_type, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if media_type.lower() != MEDIA_TYPE.encode() or not boundary:
            raise InvalidArgument(
                f"a file is sent as {MEDIA_TYPE} with a boundary", field="content-type"
            )
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._parts = 0
        self._part = _Part()
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._file = bytearray()
        self._ended = self._has_file = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._all,
                },
            )
        except FormParserError as error:
            raise InvalidArgument(str(error), field="content-type") from None

    def feed(self, data: bytes) -> bytes:
        """The file's bytes among these. Raises InvalidArgument and names the part."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidArgument(f"this is no multipart body: {error}", field="body") from None
        found = bytes(self._file)
        self._file.clear()
        return found

    def end(self) -> None:
        """There is no more. Raises InvalidArgument for a body that is not whole, or has no
        file."""
        if not self._ended:
            raise InvalidArgument("the multipart body ends too early", field="body")
        if not self._has_file:
            raise InvalidArgument("the part file is missing", field=_FILE)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidArgument(f"over {MAX_PARTS} parts", field="body")
        self._part, self._headers = _Part(), {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        part = self._part
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        part.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        if not part.name:
            raise InvalidArgument("a part has no name", field="body")
        if part.name == _FILE:
            if self._has_file:
                raise InvalidArgument("the part file occurs twice", field=_FILE)
            self._has_file, self.filename = True, part.filename
            if len(part.filename) > MAX_FILENAME_CHARS or not part.filename.isprintable():
                raise InvalidArgument(
                    f"a file's name has at most {MAX_FILENAME_CHARS} printable characters",
                    field=_FILE,
                )

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name == _FILE:
            self._file += data[start:end]
            return
        part.value += data[start:end]
        if len(part.value) > MAX_FIELD_BYTES:
            name = part.name[:64]
            raise InvalidArgument(f"{name} has over {MAX_FIELD_BYTES} bytes", field=name)

    def _end(self) -> None:
        part, name = self._part, self._part.name[:64]
        if name == _FILE:
            return
        if name in self.fields:
            raise InvalidArgument(f"the part {name} occurs twice", field=name)
        try:
            self.fields[name] = part.value.decode()
        except UnicodeDecodeError:
            raise InvalidArgument(f"{name} is not UTF-8", field=name) from None

    def _all(self) -> None:
        self._ended = True
