"""A mesh whose services know one another by certificates."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from services.common import channels


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), True)
        .add_extension(x509.SubjectAlternativeName([loopback]), False)
    )
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    files = {
        "AUTHORITY": _certificate("authority", authority, "authority", authority),
        "CERTIFICATE": _certificate("mesh", key, "authority", authority),
        "KEY": key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    }
    for name, content in files.items():
        path = tmp_path / f"{name.lower()}.pem"
        path.write_bytes(content)
        monkeypatch.setenv(f"SHUNT_TLS_{name}", str(path))


@pytest.mark.usefixtures("credentials")
async def test_services_speak_only_to_those_with_a_certificate(
    tmp_path: Path, client: httpx.AsyncClient
) -> None:
    async with meshes.running(tmp_path / "mesh") as mesh:
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
        record = await meshes.stream_chat(
            client, mesh.url(), {**body, "temperature": 0}, meshes.StreamRecord()
        )
        assert "Paris" in record.text, record.error
        assert "Paris" in await mesh.shunt("chat", "What is the capital of France?")
        services = (await mesh.status())["services"]
        address = next(s["grpc"] for s in services if s["name"] == "controller")
        async with channels.open_channel(address) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
