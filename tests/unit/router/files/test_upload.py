"""Multipart bodies, however their bytes come."""

from __future__ import annotations

import itertools

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.router.files.upload import MAX_PARTS, Upload


def made(content: bytes = b"{}\n", **fields: str) -> tuple[str, bytes]:
    """Content type and body as a client makes them."""
    files = {"file": ("lines.jsonl", content)}
    request = httpx.Request("POST", "http://x/", data=fields, files=files)
    return request.headers["content-type"], request.read()


def by_hand(*parts: str) -> tuple[str, bytes]:
    body = "".join(f"--b\r\n{part}\r\n" for part in parts) + "--b--\r\n"
    return "multipart/form-data; boundary=b", body.encode()


@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(0, 900), max_size=12))
def test_a_file_is_the_same_however_it_comes(content: bytes, cuts: list[int]) -> None:
    content_type, body = made(content, purpose="batch")
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    upload = Upload(content_type)
    found = b"".join(upload.feed(body[start:stop]) for start, stop in itertools.pairwise(edges))
    upload.end()
    assert (found, upload.filename) == (content, "lines.jsonl")
    assert upload.fields == {"purpose": "batch"}


def read(content_type: str, body: bytes) -> None:
    upload = Upload(content_type)
    upload.feed(body)
    upload.end()


FILE = 'content-disposition: form-data; name="file"; filename="a"\r\n\r\nx'


@pytest.mark.parametrize(
    ("content_type", "body", "named"),
    [
        ("application/json", b"", "content-type"),
        ("multipart/form-data", b"", "content-type"),
        (f"multipart/form-data; boundary={'b' * 300}", b"", "content-type"),
        ("multipart/form-data; boundary=b", b"hello there", "body"),
        ("multipart/form-data; boundary=b", b"--b\r\n", "body"),
        (*by_hand('content-disposition: form-data; name="purpose"\r\n\r\nbatch'), "file"),
        (*by_hand(FILE, FILE), "file"),
        (*by_hand("content-disposition: form-data\r\n\r\nx"), "body"),
        (*by_hand(f'content-disposition: form-data; name="p"\r\n\r\n{"x" * 1025}'), "p"),
        (*by_hand(*['content-disposition: form-data; name="p"\r\n\r\nx'] * 2), "p"),
        (
            *by_hand(
                f'content-disposition: form-data; name="file"; filename="{"n" * 256}"\r\n\r\n'
            ),
            "file",
        ),
    ],
)
def test_what_is_wrong_is_named(content_type: str, body: bytes, named: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        read(content_type, body)
    assert refusal.value.field == named


def test_parts_have_a_bound() -> None:
    parts = [f'content-disposition: form-data; name="p{n}"\r\n\r\n' for n in range(MAX_PARTS + 1)]
    content_type, body = by_hand(*parts)
    with pytest.raises(InvalidArgument, match=f"over {MAX_PARTS} parts"):
        Upload(content_type).feed(body)
