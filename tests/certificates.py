"""A certificate authority for tests, and certificates with roles in them."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common.roles import Role, host_of


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Authority:
    """Signs certificates for 127.0.0.1 and keeps them in a directory."""

    directory: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=_key)

    def __post_init__(self) -> None:
        self.path.write_bytes(self._sign(_name("authority"), self.key, []))

    @property
    def path(self) -> Path:
        return self.directory / "authority.pem"

    def issue(
        self, identity: str, *, ended: bool = False, names_role: bool = False
    ) -> dict[str, Path]:
        """Certificate, key and authority for spiffe://shunt/IDENTITY; none in it when empty.
        `names_role`: to who calls its holder, too."""
        key, name = _key(), identity.replace("/", "-") or "nobody"
        uris: list[x509.GeneralName] = []
        if identity:
            uris.append(x509.UniformResourceIdentifier(f"spiffe://shunt/{identity}"))
        if names_role:
            uris.append(x509.DNSName(host_of(Role(identity.partition("/")[0]))))
        certificate, secret = (self.directory / f"{name}.{kind}" for kind in ("pem", "key"))
        certificate.write_bytes(self._sign(_name(name), key, uris, ended=ended))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return {"certificate": certificate, "key": secret, "authority": self.path}

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        uris: list[x509.GeneralName],
        *,
        ended: bool = False,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2 * ended)
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=key is self.key, path_length=None), True)
            .add_extension(x509.SubjectAlternativeName([loopback, *uris]), False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
