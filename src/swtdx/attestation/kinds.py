"""What kind of thing some bytes are, before anything is made of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from swtdx.arch.report_structs import REPORTTYPE, TEE_TYPE_TDX

from .errors import AttestationError, QuoteFormatError
from .qgs import messages
from .quote import HEADER, INTEL_QE_VENDOR_ID, ParsedQuote
from .tdreport import TDREPORT_SIZE
from .textforms import decode, looks_like_text


class Kind(StrEnum):
    """What was given."""

    QUOTE = "TD quote"
    SGX_QUOTE = "SGX quote"
    TDREPORT = "TDREPORT"
    CERTIFICATES = "certificates"
    CRL = "certificate revocation list"
    COLLATERAL = "collateral"
    TCB_INFO = "TCB info"
    IDENTITY = "enclave identity"


#: Header of the buffer of TDVMCALL GetQuote, in bytes; old drivers hand the quote out in it.
_BUFFER_HEADER: Final = 24


def is_quote(data: bytes) -> bool:
    """Whether the bytes start like a quote of version 3 to 5."""
    if len(data) < HEADER.size:
        return False
    version, tee = HEADER.version.get(data), HEADER.tee_type.get(data)
    key = HEADER.attestation_key_type.get(data)
    return version in (3, 4, 5) and tee in (0, TEE_TYPE_TDX) and key in (2, 3)


def is_report(data: bytes) -> bool:
    """Whether the bytes are a TDREPORT."""
    return (
        len(data) == TDREPORT_SIZE
        and REPORTTYPE.type_.get(data) == TEE_TYPE_TDX
        and not any(data[REPORTTYPE.size : 16])
    )


def without_envelope(data: bytes) -> bytes:
    """The quote out of what it is sent or kept in; else ``data`` itself.

    A GetQuote buffer, a QGS answer (also behind its length), or any other bytes in which Intel's QE vendor
    id is at its place in a TD quote's header: CBOR, protocol buffers, tar.
    """
    if is_quote(data):
        return data
    if data[:8] == (1).to_bytes(8, "little") and len(data) > _BUFFER_HEADER:
        size = int.from_bytes(data[20:24], "little")
        inner = data[_BUFFER_HEADER : _BUFFER_HEADER + size]
        inner = inner if is_quote(inner) else without_envelope(inner)
        if is_quote(inner):
            return inner
    for message in (data, data[4:]):
        try:
            return messages.parse_quote_response(message)
        except AttestationError:
            continue
    at = data.find(INTEL_QE_VENDOR_ID) - HEADER.qe_vendor_id.offset
    if at > 0 and is_quote(data[at : at + HEADER.size]) and HEADER.tee_type.get(data, at) == TEE_TYPE_TDX:
        return data[at:]
    return data


def _wanted(data: bytes) -> bool:
    return is_report(data) or is_quote(without_envelope(data))


def kind_of(data: bytes) -> Kind | None:
    """The kind of a binary quote or TDREPORT; None for anything else."""
    if is_report(data):
        return Kind.TDREPORT
    if not is_quote(data):
        return None
    sgx = HEADER.tee_type.get(data) == 0
    return Kind.SGX_QUOTE if sgx else Kind.QUOTE


def quote_bytes(data: bytes) -> bytes:
    """The TD quote that ``data`` is, or carries: binary, hex, base64, base64url, or JSON around one of these.

    Something that is no quote at all comes back as it is, for a verifier to say so.

    Raises:
        QuoteFormatError: it is a TDREPORT, or text in which no quote can be found; says what to do.
    """
    found = decode(data, _wanted)
    if found is None:
        form = looks_like_text(data)
        if form:
            raise QuoteFormatError(f"this is {form}, but no quote is in it")
        return data
    inner, form = found
    if is_report(inner):
        how = "" if form == "binary" else f" in {form}"
        raise QuoteFormatError(
            f"this is a TDREPORT{how}, no quote: only the machine that made it can check it. A quote "
            "generation service makes a quote of it; `swtdx show` shows what the TDREPORT says"
        )
    return without_envelope(inner)


def given(data: bytes) -> tuple[bytes, str]:
    """A quote or TDREPORT out of whatever it is written in, and how it was written.

    ``data`` itself and "" if there is neither in it.
    """
    found = decode(data, _wanted)
    if found is None:
        return data, ""
    return without_envelope(found[0]), found[1]


def parsed(data: bytes) -> ParsedQuote:
    """A quote taken apart, out of whatever it is written in.

    Raises:
        QuoteFormatError: there is no TD quote in it, or it ends too early.
    """
    return ParsedQuote(quote_bytes(data))
