"""TDREPORT: its layout, and the check that only the machine it was made on can do.

A TDREPORT (1024 bytes) is REPORTMACSTRUCT ‖ TEE_TCB_INFO ‖ 17 reserved bytes ‖ TDINFO; the MAC covers
the first structure, which carries the hashes of the other two.  Layout and MAC: structures.md section 9
(from the TDX module ABI and ``tdh_mng_init``'s headers).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final, Protocol

from swtdx.arch.report_structs import (
    REPORT_MAC_COVERS,
    REPORTMACSTRUCT,
    REPORTTYPE,
    TDINFO,
    TDREPORT,
    TEE_TCB_INFO,
    TEE_TCB_INFO_VALID_PRESERVING,
    TEE_TYPE_TDX,
)
from swtdx.arch.td_config import ATTR_SEPT_VE_DISABLE

from .errors import ReportRejected
from .keys import derive

#: Bytes of a TDREPORT, and where its second and third structure start in it.
TDREPORT_SIZE: Final = TDREPORT.size
TEE_TCB_INFO_OFFSET: Final = 256
TDINFO_OFFSET: Final = 512


class ReportVerifier(Protocol):
    """The machine's own check of a REPORTMACSTRUCT: what EVERIFYREPORT2 is to a quoting enclave."""

    def verify(self, mac_struct: bytes) -> bool:
        """Whether the MAC of these 256 bytes is this machine's."""
        ...


class ReportKey:
    """The secret under which one machine MACs its reports (a :class:`ReportVerifier`).

    Hardware makes a new one at every boot; a machine passes its own here, or only a ``verify`` of its
    own so that the key never leaves it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = bytes(key)

    @classmethod
    def from_seed(cls, seed: bytes) -> ReportKey:
        """A key for reports that are made without a machine (test vectors, examples)."""
        return cls(derive(seed, "report MAC key", 32))

    def mac(self, covered: bytes) -> bytes:
        """MAC (32 bytes) of bytes 0..223 of a REPORTMACSTRUCT."""
        return hmac.digest(self._key, covered, "sha256")

    def verify(self, mac_struct: bytes) -> bool:
        """Whether bytes 224..255 are the MAC of bytes 0..223."""
        return len(mac_struct) == REPORTMACSTRUCT.size and hmac.compare_digest(
            self.mac(bytes(mac_struct[:REPORT_MAC_COVERS])), bytes(mac_struct[REPORT_MAC_COVERS:])
        )


def check(report: bytes, verifier: ReportVerifier) -> None:
    """Check a TDREPORT as the quoting enclave does before it signs.

    Raises:
        ReportRejected: wrong size, not a TDX report, MAC not of this machine, or a structure that is
            not the one whose hash the MAC covers.
    """
    if len(report) != TDREPORT_SIZE:
        raise ReportRejected(f"a TDREPORT has {TDREPORT_SIZE} bytes, not {len(report)}")
    kind, subtype = REPORTTYPE.type_.get(report), REPORTTYPE.subtype.get(report)
    version = REPORTTYPE.version.get(report)
    known = kind == TEE_TYPE_TDX and subtype == 0 and version in (0, 1)
    if not known or not REPORTTYPE.reserved_is_zero(report):
        raise ReportRejected(
            f"REPORTTYPE is type {kind:#x}, subtype {subtype}, version {version}; a TDREPORT has type "
            f"{TEE_TYPE_TDX:#x}, subtype 0 and version 0 or 1"
        )
    if not verifier.verify(bytes(report[: REPORTMACSTRUCT.size])):
        raise ReportRejected(
            "the MAC of the TDREPORT is not this machine's: it was made on another machine or before "
            "a reboot, or was changed on the way"
        )
    for name, start, size, expected in (
        ("TEE_TCB_INFO", TEE_TCB_INFO_OFFSET, TEE_TCB_INFO.size, REPORTMACSTRUCT.tee_tcb_info_hash),
        ("TDINFO", TDINFO_OFFSET, TDINFO.size, REPORTMACSTRUCT.tee_info_hash),
    ):
        if hashlib.sha384(report[start : start + size]).digest() != expected.get(report):
            raise ReportRejected(f"{name} is not the one that the TDREPORT's MAC covers: its hash differs")


# Attributes of an ordinary TD: SEPT_VE_DISABLE, without which Linux does not start and verifiers reject.
# x87, SSE, AVX, AVX-512, PKRU and AMX: what a TD on a current server has.
_XFAM: Final = 0x602E7


def _digest(label: str) -> bytes:
    return hashlib.sha384(label.encode()).digest()


@dataclass(frozen=True)
class TdReportFields:
    """What goes into a TDREPORT that is made without a machine.

    Sizes in bytes: measurements 48, ``reportdata`` 64, SVNs 16; attributes and XFAM are 64-bit
    numbers.  The defaults are an ordinary TD, recognisable by its invented measurements.
    """

    reportdata: bytes = bytes(64)
    cpusvn: bytes = bytes((2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0))
    tee_tcb_svn: bytes = bytes((5, 1, 2)) + bytes(13)
    tee_tcb_svn2: bytes = bytes((5, 1, 2)) + bytes(13)
    mrseam: bytes = field(default_factory=lambda: _digest("swtdx example MRSEAM"))
    mrsignerseam: bytes = bytes(48)
    seam_attributes: int = 0
    attributes: int = ATTR_SEPT_VE_DISABLE
    xfam: int = _XFAM
    mrtd: bytes = field(default_factory=lambda: _digest("swtdx example MRTD"))
    mrconfigid: bytes = bytes(48)
    mrowner: bytes = bytes(48)
    mrownerconfig: bytes = bytes(48)
    rtmrs: tuple[bytes, bytes, bytes, bytes] = (bytes(48), bytes(48), bytes(48), bytes(48))
    servtd_hash: bytes = bytes(48)

    def report(self, key: ReportKey) -> bytes:
        """The TDREPORT, 1024 bytes, with its MAC.

        Raises:
            LayoutError: a field has the wrong size.
        """
        tcb = TEE_TCB_INFO.new()
        TEE_TCB_INFO.valid.set(tcb, TEE_TCB_INFO_VALID_PRESERVING)
        TEE_TCB_INFO.tee_tcb_svn.set(tcb, self.tee_tcb_svn)
        TEE_TCB_INFO.mrseam.set(tcb, self.mrseam)
        TEE_TCB_INFO.mrsignerseam.set(tcb, self.mrsignerseam)
        TEE_TCB_INFO.attributes.set(tcb, self.seam_attributes)
        TEE_TCB_INFO.tee_tcb_svn2.set(tcb, self.tee_tcb_svn2)
        info = TDINFO.new()
        for name in ("attributes", "xfam", "mrtd", "mrconfigid", "mrowner", "mrownerconfig", "servtd_hash"):
            getattr(TDINFO, name).set(info, getattr(self, name))
        for index, rtmr in enumerate(self.rtmrs):
            getattr(TDINFO, f"rtmr{index}").set(info, rtmr)
        mac = REPORTMACSTRUCT.new()
        REPORTTYPE.type_.set(mac, TEE_TYPE_TDX)
        REPORTTYPE.version.set(mac, int(any(self.servtd_hash)))
        REPORTMACSTRUCT.cpusvn.set(mac, self.cpusvn)
        REPORTMACSTRUCT.tee_tcb_info_hash.set(mac, hashlib.sha384(tcb).digest())
        REPORTMACSTRUCT.tee_info_hash.set(mac, hashlib.sha384(info).digest())
        REPORTMACSTRUCT.report_data.set(mac, self.reportdata)
        REPORTMACSTRUCT.mac.set(mac, key.mac(bytes(mac[:REPORT_MAC_COVERS])))
        return bytes(mac + tcb + bytes(TDINFO_OFFSET - TEE_TCB_INFO_OFFSET - len(tcb)) + info)
