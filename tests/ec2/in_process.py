"""moto under the clients of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mocked() -> Iterator[None]:
    """What moto has is one for the process, clouds that listen among it, and stays as it is: use a
    region of your own."""
    import moto

    mock = moto.mock_aws()
    mock.start(reset=False)
    try:
        yield
    finally:
        mock.stop(remove_data=False)
