"""A mesh's authority, and the certificates that it signs: each for one role, for some hours.

Nothing here reads a file or a clock. Certificates are X.509 as RFC 5280 profiles it; a role is a
URI among the subject's alternative names, as SPIFFE has it (services/common/roles.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from services.common.roles import ROLE_HOSTS, Identity, Role, host_of, identity_of

LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts of every certificate: a service's own health checks and its neighbours dial them."""
SKEW = timedelta(minutes=5)
"""Clocks of a mesh may differ by so much."""
LIFE = timedelta(hours=12)
"""Where nobody says otherwise."""
MIN_LIFE, MAX_LIFE = timedelta(minutes=1), timedelta(days=90)
MAX_AUTHORITY_DAYS = 3650
MAX_HOSTS = 64
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_MAX_NAME = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a certificate is to say."""

    identity: Identity
    hosts: tuple[str, ...]
    """IP addresses and DNS names, of which the first label may be *."""
    life: timedelta


@dataclass(frozen=True, slots=True)
class Issued:
    """What a certificate says."""

    wish: Wish
    begins: datetime
    ends: datetime
    names_its_role: bool = True
    """To who calls its holder, too: certificates of earlier versions do not."""

    def is_due(self, now: datetime) -> bool:
        """Whether two thirds of its life are over, or it lacks what it would say by now."""
        return not self.names_its_role or now >= self.ends - self.wish.life / 3


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates for one mesh. All of it that is secret is the key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def drawn(cls, mesh: str, days: int, now: datetime) -> Authority:
        """A new one. Raises InvalidArgument."""
        if not 0 < len(mesh) <= _MAX_NAME or not mesh.isprintable():
            raise InvalidArgument(f"mesh has 1 to {_MAX_NAME} visible characters", field="mesh")
        if not 1 <= days <= MAX_AUTHORITY_DAYS:
            raise InvalidArgument(f"days are 1 to {MAX_AUTHORITY_DAYS}", field="days")
        key, name = ec.generate_private_key(ec.SECP256R1()), _name(mesh)
        builder = (
            _builder(name, name, key.public_key(), now - SKEW, now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificates: bytes, key: bytes) -> Authority:
        """The authority whose key this is, from one certificate or several. Raises
        FailedPrecondition."""
        try:
            found = serialization.load_pem_private_key(key, None)
            known = x509.load_pem_x509_certificates(certificates)
        except (ValueError, TypeError) as error:
            raise FailedPrecondition("the authority's files cannot be read") from error
        if isinstance(found, ec.EllipticCurvePrivateKey):
            for certificate in known:
                if certificate.public_key() == found.public_key():
                    return cls(certificate, found)
        raise FailedPrecondition("the authority's key is of none of its certificates")

    def issue(self, wish: Wish, now: datetime) -> tuple[bytes, bytes]:
        """Certificate and key, both PEM. The certificate ends when its authority does, if not
        before. Raises InvalidArgument, and FailedPrecondition for an authority that has ended."""
        _check(wish)
        last = self.certificate.not_valid_after_utc
        if now >= last:
            raise FailedPrecondition(f"the authority ended at {last}")
        identity = wish.identity
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(identity.uri)
        hosts = (*wish.hosts, host_of(identity.role))
        names = x509.SubjectAlternativeName([uri, *(_host(host) for host in hosts)])
        subject = _name((identity.node_id or identity.role)[:_MAX_NAME])
        signed = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        begins = max(now - SKEW, self.certificate.not_valid_before_utc)
        builder = (
            _builder(
                subject,
                self.certificate.subject,
                key.public_key(),
                begins,
                min(now + wish.life, last),
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(_BOTH_ENDS, critical=False)
            .add_extension(names, critical=False)
            .add_extension(signed, critical=False)
        )
        return _pem_of(builder.sign(self.key, hashes.SHA256())), key_pem(key)

    def has_signed(self, certificate: bytes) -> bool:
        """Whether a certificate is of this authority."""
        try:
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return _pem_of(self.certificate)


def read_issued(pem: bytes) -> Issued:
    """What a certificate says. Raises InvalidArgument for one that no authority of a mesh has
    made."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = identity_of(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (ValueError, x509.ExtensionNotFound, PermissionDenied) as error:
        raise InvalidArgument("it names no role", field="certificate") from error
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    named = names.get_values_for_type(x509.DNSName)
    hosts = (*addresses, *(name for name in named if not name.endswith(ROLE_HOSTS)))
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    life = max(MIN_LIFE, ends - begins - SKEW)
    return Issued(Wish(identity, hosts, life), begins, ends, host_of(identity.role) in named)


def identity_from(role: str, node: str = "") -> Identity:
    """Raises InvalidArgument, naming what is wrong."""
    if role not in frozenset(Role):
        raise InvalidArgument(f"{role[:64]!r} is none of {', '.join(Role)}", field="role")
    if node and role != Role.ENGINE:
        raise InvalidArgument("only an engine's certificate names a node", field="node")
    if node and not _NODE.fullmatch(node):
        raise InvalidArgument(
            "a node has 1 to 128 letters, digits, dots, hyphens and underscores", field="node"
        )
    return Identity(Role(role), node)


def _check(wish: Wish) -> None:
    if not MIN_LIFE <= wish.life <= MAX_LIFE:
        raise InvalidArgument(f"a certificate lives for {MIN_LIFE} to {MAX_LIFE}", field="life")
    if not 0 < len(wish.hosts) <= MAX_HOSTS:
        raise InvalidArgument(f"hosts are 1 to {MAX_HOSTS}", field="host")
    for host in wish.hosts:
        if f".{host.lower()}".endswith(ROLE_HOSTS):
            raise InvalidArgument(f"{ROLE_HOSTS} names roles, and no hosts", field="host")
    identity_from(wish.identity.role, wish.identity.node_id)


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if len(text) > 253 or not _DNS.fullmatch(text):
        raise InvalidArgument(f"{text[:64]!r} is no IP address and no DNS name", field="host")
    return x509.DNSName(text)


def hosts_of(wanted: Sequence[str]) -> tuple[str, ...]:
    """Those, each once, and loopback."""
    return tuple(dict.fromkeys((*wanted, *LOOPBACK)))


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


_BOTH_ENDS = x509.ExtendedKeyUsage(
    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
)
"""Services call and are called."""
