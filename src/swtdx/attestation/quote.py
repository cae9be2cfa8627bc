"""The bytes of quotes, versions 4 and 5: layouts, assembly, and taking one apart.

Layout: attestation.md sections 2-4 (from Intel's ``sgx_quote_4.h``,
``sgx_quote_5.h`` and dcap-qvl ``src/quote.rs``).  Taking apart is for reports, vectors and the event
log; whether a quote is *good* is for a verifier to say (``verify``).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from swtdx.arch.layout import Blob, Field, Struct
from swtdx.arch.report_structs import (
    REPORTMACSTRUCT,
    TDINFO,
    TEE_TCB_INFO,
    TEE_TCB_INFO_VALID_PRESERVING,
    TEE_TYPE_TDX,
)
from swtdx.arch.td_config import ATTRIBUTES, XFAM

from .errors import QuoteFormatError
from .tdreport import TDINFO_OFFSET, TEE_TCB_INFO_OFFSET


class HEADER(Struct, size=48, label="quote header"):
    version = Field(0, 2)
    attestation_key_type = Field(2, 2, "2: ECDSA with P-256 and SHA-256")
    tee_type = Field(4, 4, "0x81: TDX")
    reserved1 = Field(8, 2, "QE SVN in version 3")
    reserved2 = Field(10, 2, "PCE SVN in version 3")
    qe_vendor_id = Blob(12, 16)
    user_data = Blob(28, 20, "QE-ID in the first 16 bytes")


class TD_BODY_1_0(Struct, size=584, label="TD quote body 1.0"):
    tee_tcb_svn = Blob(0, 16)
    mrseam = Blob(16, 48)
    mrsignerseam = Blob(64, 48)
    seamattributes = Field(112, 8)
    tdattributes = Field(120, 8, holds=ATTRIBUTES)
    xfam = Field(128, 8, holds=XFAM)
    mrtd = Blob(136, 48)
    mrconfigid = Blob(184, 48)
    mrowner = Blob(232, 48)
    mrownerconfig = Blob(280, 48)
    rtmr0 = Blob(328, 48)
    rtmr1 = Blob(376, 48)
    rtmr2 = Blob(424, 48)
    rtmr3 = Blob(472, 48)
    reportdata = Blob(520, 64)


class TD_BODY_1_5(TD_BODY_1_0, size=648, label="TD quote body 1.5"):
    tee_tcb_svn2 = Blob(584, 16)
    mrservicetd = Blob(600, 48)


#: Body of quotes that newer quoting enclaves make (``sgx_report2_body_v1_5_ex_t``); read, never made.


class TD_BODY_1_5_EX(TD_BODY_1_5, size=885, label="TD quote body 1.5ex"):
    vmid = Field(648, 1)
    td_id = Blob(649, 32)
    dev_info = Blob(681, 48)
    init_servtd_hash = Blob(729, 48)
    init_servtd_attributes = Field(777, 8)
    init_cpusvn = Blob(785, 16)
    init_tee_tcb_svn = Blob(801, 16)
    init_tee_fmspc = Blob(817, 12)
    cur_servtd_hash = Blob(829, 48)
    cur_servtd_attributes = Field(877, 8)


class SGX_REPORT(Struct, size=384, label="SGX report body"):
    cpusvn = Blob(0, 16)
    miscselect = Field(16, 4)
    reserved1 = Blob(20, 28, reserved=True)
    attributes = Blob(48, 16)
    mrenclave = Blob(64, 32)
    reserved2 = Blob(96, 32, reserved=True)
    mrsigner = Blob(128, 32)
    reserved3 = Blob(160, 96, reserved=True)
    isvprodid = Field(256, 2)
    isvsvn = Field(258, 2)
    reserved4 = Blob(260, 60, reserved=True)
    reportdata = Blob(320, 64)


#: Intel's QE vendor id.  Verifiers accept no other, so simulated quotes carry it as well.
INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
KEY_TYPE_P256: Final = 2

#: Certification data types.
PCK_CHAIN: Final = 5
QE_REPORT_CERTIFICATION_DATA: Final = 6


class BodyType(IntEnum):
    """Body type field of a version 5 quote."""

    SGX = 1
    TD_1_0 = 2
    TD_1_5 = 3
    TD_1_5_EX = 4

    @property
    def label(self) -> str:
        """The body's version as people write it."""
        return {1: "SGX", 2: "1.0", 3: "1.5", 4: "1.5ex"}[self]


TD_BODIES: Final[dict[BodyType, type[TD_BODY_1_0]]] = {
    BodyType.TD_1_0: TD_BODY_1_0,
    BodyType.TD_1_5: TD_BODY_1_5,
    BodyType.TD_1_5_EX: TD_BODY_1_5_EX,
}
BODIES: Final[dict[BodyType, type[Struct]]] = {BodyType.SGX: SGX_REPORT, **TD_BODIES}


#: Name, first byte and end of each field, by body.
_BODY_FIELDS: Final = {
    kind: [(name, member.offset, member.offset + member.span) for name, member in layout.fields.items()]
    for kind, layout in BODIES.items()
}


def header(version: int, user_data: bytes) -> bytes:
    """A quote header (48 bytes); ``user_data`` is 20 bytes."""
    out = HEADER.new()
    HEADER.version.set(out, version)
    HEADER.attestation_key_type.set(out, KEY_TYPE_P256)
    HEADER.tee_type.set(out, TEE_TYPE_TDX)
    HEADER.qe_vendor_id.set(out, INTEL_QE_VENDOR_ID)
    HEADER.user_data.set(out, user_data)
    return bytes(out)


def td_body(report: bytes, body: BodyType) -> bytes:
    """The quote body for a TDREPORT: what the report says, in the quote's order.

    A quote leaves out CPUSVN and the MAC, which mean nothing outside the machine.
    """
    layout = TD_BODIES[body]
    tcb, info = TEE_TCB_INFO_OFFSET, TDINFO_OFFSET
    out = layout.new()
    for name in ("tee_tcb_svn", "mrseam", "mrsignerseam"):
        getattr(layout, name).set(out, getattr(TEE_TCB_INFO, name).get(report, tcb))
    layout.seamattributes.set(out, TEE_TCB_INFO.attributes.get(report, tcb))
    layout.tdattributes.set(out, TDINFO.attributes.get(report, info))
    same = ("xfam", "mrtd", "mrconfigid", "mrowner", "mrownerconfig", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    for name in same:
        getattr(layout, name).set(out, getattr(TDINFO, name).get(report, info))
    layout.reportdata.set(out, REPORTMACSTRUCT.report_data.get(report))
    if body is BodyType.TD_1_5:
        # A report of a module that was never updated under its TDs need not have the current SVN.
        updated = TEE_TCB_INFO.valid.get(report, tcb) == TEE_TCB_INFO_VALID_PRESERVING
        current = TEE_TCB_INFO.tee_tcb_svn2 if updated else TEE_TCB_INFO.tee_tcb_svn
        TD_BODY_1_5.tee_tcb_svn2.set(out, current.get(report, tcb))
        TD_BODY_1_5.mrservicetd.set(out, TDINFO.servtd_hash.get(report, info))
    return bytes(out)


def signed_part(version: int, user_data: bytes, body: BodyType, content: bytes) -> bytes:
    """Header, in version 5 the body's type and size, and the body: all that the quote signature covers."""
    descriptor = struct.pack("<HI", body, len(content)) if version == 5 else b""
    return header(version, user_data) + descriptor + content


def certification_data(kind: int, content: bytes) -> bytes:
    """Type (u16), size (u32), content."""
    return struct.pack("<HI", kind, len(content)) + content


def signature_data(
    signature: bytes,
    attestation_key: bytes,
    qe_report: bytes,
    qe_report_signature: bytes,
    qe_auth_data: bytes,
    pck_chain: bytes,
) -> bytes:
    """The signature part of a quote, its u32 length first.

    ``signature`` and ``qe_report_signature`` are r ‖ s (64 bytes), ``attestation_key`` x ‖ y (64),
    ``qe_report`` 384 bytes, ``qe_auth_data`` up to 65535 and ``pck_chain`` PEM.
    """
    certified = (
        qe_report
        + qe_report_signature
        + struct.pack("<H", len(qe_auth_data))
        + qe_auth_data
        + certification_data(PCK_CHAIN, pck_chain)
    )
    content = signature + attestation_key + certification_data(QE_REPORT_CERTIFICATION_DATA, certified)
    return struct.pack("<I", len(content)) + content


class Part(NamedTuple):
    """A named run of bytes in a quote."""

    name: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the part."""
        return self.start + self.size


class ParsedQuote:
    """A TD quote taken apart, unverified.

    Raises:
        QuoteFormatError: the bytes are no TD quote of version 4 or 5, or end too early.
    """

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        #: Every part, in order, none overlapping; after the last one may be padding.
        self.parts: list[Part] = []
        self._cursor = 0
        self._limit = len(self.data)
        self._take("header", HEADER.size)
        self.version = HEADER.version.get(data)
        if self.version not in (4, 5):
            raise QuoteFormatError(f"quote version {self.version}: a TD quote has version 4 or 5")
        tee = HEADER.tee_type.get(data)
        if tee != TEE_TYPE_TDX:
            raise QuoteFormatError(f"TEE type {tee:#x}: this is not a TDX quote, which has {TEE_TYPE_TDX:#x}")
        self.body_type = BodyType.TD_1_0
        if self.version == 5:
            kind = self._number("body type", 2)
            if kind == BodyType.SGX or kind not in list(BodyType):
                raise QuoteFormatError(f"body type {kind}: TD bodies are 2 (1.0), 3 (1.5) and 4 (1.5ex)")
            self.body_type = BodyType(kind)
            size = self._number("body size", 4)
            if size != BODIES[self.body_type].size:
                raise QuoteFormatError(
                    f"body size {size}: type {kind} has {BODIES[self.body_type].size} bytes"
                )
        self.body_layout = BODIES[self.body_type]
        self.body_start = self._take("body", self.body_layout.size)
        self.signed_size = self._cursor
        length = self._number("signature data length", 4)
        if length > self._limit - self._cursor:
            raise QuoteFormatError(
                f"signature data length {length} at byte {self._cursor - 4}: only "
                f"{self._limit - self._cursor} bytes follow"
            )
        self._limit = self._cursor + length
        self._take("quote signature", 64)
        self._take("attestation key", 64)
        outer = self._number("certification data type", 2)
        if outer != QE_REPORT_CERTIFICATION_DATA:
            raise QuoteFormatError(f"certification data type {outer}: a TD quote has 6 there")
        self._number("certification data size", 4)
        self._take("QE report", SGX_REPORT.size)
        self._take("QE report signature", 64)
        self._take("QE authentication data", self._number("QE authentication data size", 2))
        self.certification_type = self._number("inner certification data type", 2)
        size = self._number("inner certification data size", 4)
        self._take("PCK certificate chain" if self.certification_type == PCK_CHAIN else "certification", size)
        #: Bytes after the quote itself: some providers pad.
        self.padding = len(self.data) - self._cursor

    def _take(self, name: str, size: int) -> int:
        start = self._cursor
        if start + size > self._limit:
            raise QuoteFormatError(
                f"the quote ends in the {name}: {size} bytes are needed from byte {start}, "
                f"{max(self._limit - start, 0)} are there"
            )
        self._cursor += size
        self.parts.append(Part(name, start, size))
        return start

    def _number(self, name: str, size: int) -> int:
        start = self._take(name, size)
        return int.from_bytes(self.data[start : start + size], "little")

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)

    def bytes_of(self, name: str) -> bytes:
        """The bytes of the part of that name."""
        part = self.part(name)
        return self.data[part.start : part.end]

    def body(self) -> dict[str, bytes]:
        """Every field of the body by its name in lower case (``mrtd``, ``rtmr0``, ``reportdata`` ...)."""
        body = self.data[self.body_start : self.body_start + self.body_layout.size]
        return {name: body[start:end] for name, start, end in _BODY_FIELDS[self.body_type]}

    def pck_chain(self) -> str:
        """The PEM chain that the quote carries; empty when it carries none."""
        if self.certification_type != PCK_CHAIN:
            return ""
        return self.bytes_of("PCK certificate chain").rstrip(b"\0").decode("ascii", "replace")
