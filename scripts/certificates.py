"""Throw-away certificates for trials with TLS on this machine."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate


def make_certificates(folder: Path, host: str) -> None:
    """Writes PEM files, if they are not there: ``ca.pem``; ``server.pem``, the key and certificate of ``host`` (an IP
    address); ``client.pem`` and ``client.key``; ``other-ca.pem``, an authority that signed none of them. Good for a week."""
    if (folder / "server.pem").exists():
        return
    authority, other = _issue("lakering trial authority"), _issue("another authority")
    client, server = _issue("client", authority), _issue("broker", authority, host)
    contents = {"ca.pem": _pem(authority), "other-ca.pem": _pem(other), "client.pem": _pem(client), "client.key": _key(client),
                "server.pem": _key(server) + _pem(server)}  # fmt: skip
    for name, content in contents.items():
        file = folder / name
        file.touch(mode=0o600)
        file.write_bytes(content)


Pair = tuple["EllipticCurvePrivateKey", "Certificate"]


def _issue(name: str, authority: Pair | None = None, host: str | None = None) -> Pair:
    """A new key and its certificate, signed by an authority, or by itself as one."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    draft = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority[1].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if host:
        draft = draft.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
    return key, draft.sign(authority[0] if authority else key, hashes.SHA256())


def _pem(pair: Pair) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return pair[1].public_bytes(Encoding.PEM)


def _key(pair: Pair) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return pair[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
