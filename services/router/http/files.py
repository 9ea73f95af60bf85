"""`/v1/files`: a body is written to where files are kept while it comes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace

from services.common.errors import InvalidArgument, ResourceExhausted
from services.router.core.files import Purpose, StoredFile, kept_s
from services.router.files.files import Files
from services.router.files.upload import Upload
from services.router.http.errors import HttpError
from services.router.http.exchange import Exchange
from services.router.http.json_body import shown
from services.router.http.paging import listing, page_of
from services.router.settings import RouterSettings

MAX_PAGE = 10_000
_FORM_BYTES = 64 << 10
"""What a multipart body may have beside its file."""
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


class FileRoutes:
    """Handlers."""

    def __init__(self, files: Files, settings: RouterSettings) -> None:
        self._files = files
        self._settings = settings
        self._uploads = 0

    async def create(self, exchange: Exchange) -> None:
        most = self._settings.max_uploads
        if self._uploads >= most:
            raise ResourceExhausted(f"{most} files are being sent already")
        self._uploads += 1
        try:
            await self._create(exchange)
        finally:
            self._uploads -= 1

    async def _create(self, exchange: Exchange) -> None:
        upload, most = Upload(exchange.header("content-type")), self._settings.max_file_bytes
        size_bytes = 0

        async def parts() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            async for data in exchange.parts(most + _FORM_BYTES):
                part = upload.feed(data)
                size_bytes += len(part)
                if size_bytes <= most:
                    yield part
            upload.end()
            if size_bytes > most:
                raise HttpError(413, "file_too_large", f"a file has at most {most} bytes")

        drawn = self._files.drawn(tenant_of(exchange), "", Purpose.BATCH, 0)
        await self._files.write(drawn.name, parts())
        try:
            file = replace(
                drawn,
                filename=upload.filename or drawn.file_id,
                size_bytes=size_bytes,
                expires_unix_s=drawn.created_unix_s + self._kept_s(upload.fields),
            )
            await self._files.enter(file)
        except BaseException:
            await self._files.forget(drawn)
            raise
        await exchange.answer(200, json.dumps(file.shown()).encode())

    def _kept_s(self, fields: dict[str, str]) -> int:
        """How long the file is kept. Raises InvalidArgument."""
        unknown = next((name for name in fields if name not in _FIELDS), None)
        if unknown is not None:
            raise InvalidArgument(f"{unknown} is no parameter here", field=unknown)
        if fields.get("purpose") != Purpose.BATCH:
            said = shown(fields["purpose"]) if "purpose" in fields else "absent"
            raise InvalidArgument(f"purpose must be batch, and is {said}", field="purpose")
        anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
        if anchor is None and seconds is None:
            return self._settings.files_keep_s
        whole = seconds is not None and _WHOLE_NUMBER.fullmatch(seconds) is not None
        return kept_s(anchor, int(seconds or 0) if whole else seconds, "expires_after")

    async def get(self, exchange: Exchange) -> None:
        file = await self._found(exchange)
        await exchange.answer(200, json.dumps(file.shown()).encode())

    async def content(self, exchange: Exchange) -> None:
        file = await self._found(exchange)
        parts = self._files.read(file.name)
        first = await anext(parts, b"")
        await exchange.begin(
            200,
            {"content-type": "application/octet-stream", "content-length": str(file.size_bytes)},
        )
        with exchange.leaving():
            await exchange.part(first)
            async for part in parts:
                if exchange.disconnected:
                    return
                await exchange.part(part)
            await exchange.finish(b"")

    async def list(self, exchange: Exchange) -> None:
        query = exchange.query("after", "limit", "order", "purpose")
        page = page_of(query, MAX_PAGE, MAX_PAGE)
        files, more = await self._files.page(
            tenant_of(exchange),
            page.after,
            page.limit,
            query.get("purpose", ""),
            oldest_first=page.oldest_first,
        )
        await exchange.answer(200, listing([file.shown() for file in files], more))

    async def delete(self, exchange: Exchange) -> None:
        file_id = str(exchange.scope["path_params"]["id"])
        await self._files.delete(tenant_of(exchange), file_id)
        said = {"id": file_id, "object": "file", "deleted": True}
        await exchange.answer(200, json.dumps(said).encode())

    async def _found(self, exchange: Exchange) -> StoredFile:
        return await self._files.get(tenant_of(exchange), exchange.scope["path_params"]["id"])


def tenant_of(exchange: Exchange) -> str:
    """Whose a file or a batch is that this client makes."""
    return exchange.tenant.name
