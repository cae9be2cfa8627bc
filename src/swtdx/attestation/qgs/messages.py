"""Messages of the quote generation service (QGS).

Layouts, types and error codes: Intel's ``qgs_msg_lib.h`` (DCAP, QuoteGeneration/quote_wrapper).  All
numbers are little-endian and packed; on a socket each message follows its length as a 4-byte
**big-endian** number (``qgs_server.cpp``, ``tdx_attest.c``, QEMU's ``quote-generator.c``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from swtdx.arch.layout import Field, Struct

from ..errors import QgsError


class HEADER(Struct, size=16, label="qgs_msg_header"):
    major = Field(0, 2)
    minor = Field(2, 2)
    type_ = Field(4, 4)
    length = Field(8, 4, "bytes of the whole message, this header included")
    error = Field(12, 4, "in responses")


#: The protocol's major version, and the newest minor one.
MAJOR: Final = 1
MINOR: Final = 1

#: Largest message that is read, in bytes: far above a quote, far below a nuisance.
MAX_MESSAGE: Final = 1 << 20

#: vsock port of the service in Intel's ``qgs.conf`` and ``tdx-attest.conf``.
VSOCK_PORT: Final = 4050


class MessageType(IntEnum):
    """Type field of a message."""

    GET_QUOTE_REQ = 0
    GET_QUOTE_RESP = 1
    GET_COLLATERAL_REQ = 2
    GET_COLLATERAL_RESP = 3
    GET_PLATFORM_INFO_REQ = 4
    GET_PLATFORM_INFO_RESP = 5


class QgsStatus(IntEnum):
    """Error code of a response (``qgs_msg_error_t``)."""

    SUCCESS = 0
    UNEXPECTED = 0x12001
    OUT_OF_MEMORY = 0x12002
    INVALID_PARAMETER = 0x12003
    INVALID_VERSION = 0x12004
    INVALID_TYPE = 0x12005
    INVALID_SIZE = 0x12006
    INVALID_CODE = 0x12007


#: Bytes of each response's structure without what follows its length fields: what an error consists of.
RESPONSE_SIZES: Final = {
    MessageType.GET_QUOTE_RESP: 24,
    MessageType.GET_COLLATERAL_RESP: 48,
    MessageType.GET_PLATFORM_INFO_RESP: 28,
}
#: Intel's library counts the two SVNs of a platform's answer, and the two version numbers of collateral
#: for clients of protocol 1.0, twice: so many zeros end the message.
_COUNTED_TWICE: Final = 4

#: Version of the collateral that is answered (``sgx_ql_qve_collateral_t``): 3.1 has its CRLs in raw DER.
COLLATERAL_VERSION: Final = (3, 1)


@dataclass(frozen=True)
class PlatformInfo:
    """Answer to GET_PLATFORM_INFO: SVNs (16 bits), platform id and CPUSVN (16 bytes each)."""

    tdqe_isvsvn: int
    pce_isvsvn: int
    platform_id: bytes
    cpusvn: bytes


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def message(kind: MessageType, payload: bytes, *, minor: int = MINOR, error: int = 0) -> bytes:
    """A whole message, without the socket's length prefix."""
    out = HEADER.new()
    HEADER.major.set(out, MAJOR)
    HEADER.minor.set(out, minor)
    HEADER.type_.set(out, kind)
    HEADER.length.set(out, HEADER.size + len(payload))
    HEADER.error.set(out, error)
    return bytes(out) + payload


def quote_request(report: bytes, ids: bytes = b"", *, minor: int = MINOR) -> bytes:
    """GET_QUOTE for a TDREPORT (1024 bytes); ``ids`` lists acceptable attestation key ids."""
    payload = _u32(len(report)) + _u32(len(ids)) + report + ids
    return message(MessageType.GET_QUOTE_REQ, payload, minor=minor)


def quote_response(quote: bytes, selected_id: bytes = b"", *, minor: int = MINOR) -> bytes:
    """The answer with a quote."""
    payload = _u32(len(selected_id)) + _u32(len(quote)) + selected_id + quote
    return message(MessageType.GET_QUOTE_RESP, payload, minor=minor)


def platform_info_request() -> bytes:
    """GET_PLATFORM_INFO."""
    return message(MessageType.GET_PLATFORM_INFO_REQ, b"")


def platform_info_response(info: PlatformInfo, *, minor: int = MINOR) -> bytes:
    """The answer with the platform's ids and SVNs."""
    payload = (
        info.tdqe_isvsvn.to_bytes(2, "little")
        + info.pce_isvsvn.to_bytes(2, "little")
        + _u32(len(info.platform_id))
        + _u32(len(info.cpusvn))
        + info.platform_id
        + info.cpusvn
        + bytes(_COUNTED_TWICE)
    )
    return message(MessageType.GET_PLATFORM_INFO_RESP, payload, minor=minor)


def error_response(kind: MessageType, status: int, *, minor: int = MINOR) -> bytes:
    """An answer that is only an error: the response's structure with zero lengths (24, 48 or 28 bytes)."""
    return message(kind, bytes(RESPONSE_SIZES[kind] - HEADER.size), minor=minor, error=status)


def collateral_request(fmspc: bytes, ca: str, *, minor: int = MINOR) -> bytes:
    """GET_COLLATERAL for a platform family (FMSPC, 6 bytes) under a PCK CA (``platform``, ``processor``)."""
    payload = _u32(len(fmspc)) + _u32(len(ca)) + fmspc + ca.encode("ascii")
    return message(MessageType.GET_COLLATERAL_REQ, payload, minor=minor)


def parse_collateral_request(data: bytes) -> tuple[bytes, str]:
    """(FMSPC, name of the PCK CA) of a GET_COLLATERAL message.

    Raises:
        QgsError: not such a message, or its lengths are wrong.
    """
    kind, *_ = parse_header(data)
    if kind != MessageType.GET_COLLATERAL_REQ:
        raise QgsError(f"QGS message type {kind} is not GET_COLLATERAL", QgsStatus.INVALID_TYPE)
    fmspc, ca = _two(data, HEADER.size)
    if not fmspc or not ca:
        raise QgsError("GET_COLLATERAL carries no FMSPC or no CA", QgsStatus.INVALID_PARAMETER)
    return fmspc, ca.rstrip(b"\0").decode("ascii", "replace")


#: The parts of collateral in the order of the message.
COLLATERAL_PARTS: Final = (
    "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain", "tcb_info",
    "qe_identity_issuer_chain", "qe_identity",
)  # fmt: skip


def collateral_response(parts: Mapping[str, bytes], *, minor: int = MINOR) -> bytes:
    """The answer with collateral: :data:`COLLATERAL_PARTS` by name, as the provider library has them.

    ``minor`` is the request's minor version: a client of 1.0 gets four zeros more (``qgs_msg_lib.cpp``).
    """
    payload = b"".join(number.to_bytes(2, "little") for number in COLLATERAL_VERSION)
    payload += b"".join(_u32(len(parts[name])) for name in COLLATERAL_PARTS)
    payload += b"".join(parts[name] for name in COLLATERAL_PARTS)
    if not minor:
        payload += bytes(_COUNTED_TWICE)
    return message(MessageType.GET_COLLATERAL_RESP, payload)


def parse_collateral_response(data: bytes) -> dict[str, bytes]:
    """The parts of an answer to GET_COLLATERAL, by name.

    Raises:
        QgsError: the service answered with an error, or not in protocol.
    """
    _response(data, MessageType.GET_COLLATERAL_RESP)
    start = RESPONSE_SIZES[MessageType.GET_COLLATERAL_RESP]
    if len(data) < start:
        raise QgsError("a QGS message ends in its length fields", QgsStatus.INVALID_SIZE)
    sizes = [int.from_bytes(data[at : at + 4], "little") for at in range(start - 28, start, 4)]
    rest = len(data) - start - sum(sizes)
    if rest not in (0, _COUNTED_TWICE):
        raise QgsError("the sizes in a QGS message do not add up", QgsStatus.INVALID_SIZE)
    parts = {}
    for name, size in zip(COLLATERAL_PARTS, sizes, strict=True):
        parts[name] = data[start : start + size]
        start += size
    return parts


def parse_header(data: bytes) -> tuple[int, int, int, int]:
    """(type, minor version, whole size, error code) of a message.

    Raises:
        QgsError: too short, another major version, or a size that is not the message's.
    """
    if len(data) < HEADER.size:
        raise QgsError(f"a QGS message has at least {HEADER.size} bytes, not {len(data)}")
    major, minor = HEADER.major.get(data), HEADER.minor.get(data)
    if major != MAJOR:
        raise QgsError(
            f"QGS protocol version {major}.{minor}; {MAJOR}.x is spoken", QgsStatus.INVALID_VERSION
        )
    size = HEADER.length.get(data)
    if size != len(data):
        raise QgsError(f"a QGS message says it has {size} bytes; it has {len(data)}", QgsStatus.INVALID_SIZE)
    return HEADER.type_.get(data), minor, len(data), HEADER.error.get(data)


def _two(data: bytes, at: int) -> tuple[bytes, bytes]:
    """Two byte strings: both lengths (u32) at ``at``, then both, filling the message."""
    start = at + 8
    if len(data) < start:
        raise QgsError("a QGS message ends in its length fields", QgsStatus.INVALID_SIZE)
    first = int.from_bytes(data[at : at + 4], "little")
    second = int.from_bytes(data[at + 4 : at + 8], "little")
    if len(data) != start + first + second:
        raise QgsError(
            f"a QGS message announces {first} and {second} bytes and carries {len(data) - start}",
            QgsStatus.INVALID_SIZE,
        )
    return data[start : start + first], data[start + first :]


def parse_quote_request(data: bytes) -> tuple[bytes, bytes]:
    """(TDREPORT, id list) of a GET_QUOTE message.

    Raises:
        QgsError: not such a message, or its lengths are wrong.
    """
    kind, *_ = parse_header(data)
    if kind != MessageType.GET_QUOTE_REQ:
        raise QgsError(f"QGS message type {kind} is not GET_QUOTE", QgsStatus.INVALID_TYPE)
    report, ids = _two(data, HEADER.size)
    if not report:
        raise QgsError("GET_QUOTE carries no TDREPORT", QgsStatus.INVALID_PARAMETER)
    return report, ids


def _padded(data: bytes) -> bool:
    """Whether a platform's answer is four bytes longer than its lengths say."""
    sizes = [int.from_bytes(data[at : at + 4], "little") for at in (20, 24)]
    return len(data) == RESPONSE_SIZES[MessageType.GET_PLATFORM_INFO_RESP] + sum(sizes) + _COUNTED_TWICE


def _response(data: bytes, expected: MessageType) -> None:
    kind, _, _, error = parse_header(data)
    if kind != expected:
        raise QgsError(f"the service answered with message type {kind}, not {expected.name}")
    if error:
        name = QgsStatus(error).name if error in list(QgsStatus) else "unknown"
        raise QgsError(f"the service answered with error {error:#x} ({name})", error)


def parse_quote_response(data: bytes) -> bytes:
    """The quote of an answer to GET_QUOTE.

    Raises:
        QgsError: the service answered with an error, or not in protocol.
    """
    _response(data, MessageType.GET_QUOTE_RESP)
    _, quote = _two(data, HEADER.size)
    return quote


def parse_platform_info_response(data: bytes) -> PlatformInfo:
    """The answer to GET_PLATFORM_INFO.

    Raises:
        QgsError: the service answered with an error, or not in protocol.
    """
    _response(data, MessageType.GET_PLATFORM_INFO_RESP)
    # Older services of swtdx left the four zeros out, which Intel's library insists on.
    ends = len(data) - _COUNTED_TWICE if not any(data[-_COUNTED_TWICE:]) and _padded(data) else len(data)
    platform_id, cpusvn = _two(data[:ends], HEADER.size + 4)
    return PlatformInfo(
        int.from_bytes(data[16:18], "little"), int.from_bytes(data[18:20], "little"), platform_id, cpusvn
    )
