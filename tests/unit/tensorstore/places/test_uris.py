from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument
from services.common.roles import Role
from services.tensorstore.places.uris import StoreService, service_of


@pytest.mark.parametrize(
    ("uri", "role"),
    [("grpc://store:7004", Role.TENSORSTORE), ("grpc://store:7004?role=engine", Role.ENGINE)],
)
def test_a_service_says_whose_certificate_it_shows(uri: str, role: Role) -> None:
    assert service_of(uri) == StoreService("store:7004", role)
    assert StoreService("store:7004", role).uri == uri


@pytest.mark.parametrize("uri", ["/a/path?role=engine", "file:///a", "s3://bucket/prefix"])
def test_others_are_no_service(uri: str) -> None:
    assert service_of(uri) is None


@pytest.mark.parametrize(
    "said", ["?", "?role=", "?role=router", "?role=engine&role=engine", "?a=b"]
)
def test_nothing_else_is_said_of_a_service(said: str) -> None:
    with pytest.raises(InvalidArgument, match="role=engine"):
        service_of(f"grpc://store:7004{said}")
