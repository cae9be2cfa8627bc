"""What a PCK certificate says about its platform: the fields of its SGX extension.

OIDs: :mod:`.sgx_platform`, which writes the same extension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from . import der
from .sgx_platform import COMPONENTS, SGX_EXTENSION

_SEQUENCE: Final = 0x30
#: SGX types by number.
SGX_TYPES: Final = {0: "standard", 1: "scalable", 2: "scalable with integrity"}


@dataclass(frozen=True)
class PckFacts:
    """FMSPC 6 bytes, PCE-ID 2, PPID, CPUSVN and instance id 16; the flags are None where it has none."""

    ppid: bytes
    fmspc: bytes
    pceid: bytes
    cpusvn: bytes
    components: tuple[int, ...]
    pcesvn: int
    sgx_type: int | None
    instance_id: bytes
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None


def pck_facts(certificate: x509.Certificate) -> PckFacts | None:
    """The platform of a PCK certificate; None for a certificate without (readable) SGX extension."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ObjectIdentifier(SGX_EXTENSION)).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    if not isinstance(extension, x509.UnrecognizedExtension):
        return None
    try:
        fields = _fields(der.read(extension.value)[0][1])
    except (ValueError, IndexError):
        return None

    def blob(oid: str) -> bytes:
        return fields.get(oid, b"")

    def number(oid: str) -> int:
        return int.from_bytes(blob(oid), "big")

    def flag(oid: str) -> bool | None:
        return any(blob(oid)) if oid in fields else None

    return PckFacts(
        ppid=blob("1"),
        fmspc=blob("4"),
        pceid=blob("3"),
        cpusvn=blob("2.18"),
        components=tuple(number(f"2.{place}") for place in range(1, COMPONENTS + 1)),
        pcesvn=number("2.17"),
        sgx_type=number("5") if "5" in fields else None,
        instance_id=blob("6"),
        dynamic_platform=flag("7.1"),
        cached_keys=flag("7.2"),
        smt_enabled=flag("7.3"),
    )


def _fields(content: bytes) -> dict[str, bytes]:
    """Every value by its OID behind that of the extension."""
    out: dict[str, bytes] = {}
    for tag, pair in der.read(content):
        if tag != _SEQUENCE:
            raise ValueError("the SGX extension has something other than pairs")
        (_, oid), (kind, value), *_ = der.read(pair)
        name = der.dotted(oid).removeprefix(f"{SGX_EXTENSION}.")
        if kind == _SEQUENCE:
            out |= _fields(value)
        else:
            out[name] = value
    return out


def chain_of(pem: str | bytes) -> list[x509.Certificate]:
    """The certificates of a PEM chain; none if it cannot be read."""
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        return []
