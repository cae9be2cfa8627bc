"""SEAMOPS: what the processor does for software in SEAM mode (reports, and the database of modules).

Leaves and result codes: ``vt_accessors.h`` of the TDX module 1.5.01; structures: structures.md §9.
The MAC is HMAC-SHA256 over the first 224 bytes of REPORTMACSTRUCT with a key that the processor derives
from its fuses for this boot; it is never given to anybody.

SEAMDB keeps the identity of every module that was loaded since the P-SEAMLDR started, so that a TD that
survives an update of the module can be attested with the module that it was started under
(TEE_TCB_INFO) and the one that runs now (TEE_TCB_SVN2).
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from swtdx.arch.report_structs import (
    HASH_BYTES,
    REPORT_MAC_COVERS,
    REPORTMACSTRUCT,
    TEE_TCB_INFO,
    TEE_TCB_INFO_VALID_BASE,
    TEE_TCB_INFO_VALID_PRESERVING,
)
from swtdx.arch.seam_structs import SEAMEXTEND
from swtdx.machine.cpu.fuses import Fuses

REPORT_DATA_BYTES: Final = 64
#: Entries that the processor keeps at most.
DATABASE_SIZE: Final = 256


class Leaf(enum.IntEnum):
    """EAX of SEAMOPS."""

    CAPABILITIES = 0
    SEAMREPORT = 1
    SEAMDB_CLEAR = 2
    SEAMDB_INSERT = 3
    SEAMDB_GETREF = 4
    SEAMDB_REPORT = 5
    SEAMVERIFYREPORT = 6


class Result(enum.IntEnum):
    """RAX after SEAMOPS."""

    SUCCESS = 0
    INPUT_ERROR = 1
    ENTROPY_ERROR = 2
    DATABASE_ERROR = 3
    INVALID_CPUSVN = 4
    INVALID_REPORTMACSTRUCT = 5


class SeamOpsError(Exception):
    """A SEAMOPS leaf failed; ``result`` is what RAX would hold."""

    def __init__(self, result: Result, why: str) -> None:
        super().__init__(f"SEAMOPS {result.name}: {why}")
        self.result = result


@dataclass(slots=True)
class SeamDatabase:
    """SEAMDB: (nonce, SEAMEXTEND) of each module loaded, oldest first."""

    entries: list[tuple[bytes, bytes]] = field(default_factory=list)


class SeamState(Protocol):
    """What the leaves look at and change: of :class:`swtdx.machine.seam.Seam`, who the part and the module
    are."""

    database: SeamDatabase
    fuses: Fuses
    cpusvn: bytes
    #: The SEAMEXTEND register.
    extend: bytes


def capabilities() -> int:
    """SEAMOPS(CAPABILITIES): a bit for every leaf that exists."""
    return sum(1 << leaf for leaf in Leaf)


def clear(seam: SeamState) -> None:
    """SEAMOPS(SEAMDB_CLEAR): forget all modules."""
    seam.database.entries.clear()


def is_full(seam: SeamState) -> bool:
    """Whether SEAMDB_INSERT would fail."""
    return len(seam.database.entries) >= DATABASE_SIZE


def insert(seam: SeamState) -> None:
    """SEAMOPS(SEAMDB_INSERT): remember the module that SEAMEXTEND describes now.

    Raises:
        SeamOpsError: DATABASE_ERROR when the database is full.
    """
    entries = seam.database.entries
    if is_full(seam):
        raise SeamOpsError(Result.DATABASE_ERROR, f"SEAMDB holds {DATABASE_SIZE} entries already")
    extend = bytes(seam.extend)
    label = len(entries).to_bytes(8, "little") + extend
    nonce = hmac.digest(seam.fuses.database_nonce, label, "sha256")
    entries.append((nonce, extend))


def getref(seam: SeamState) -> tuple[int, bytes, int]:
    """SEAMOPS(SEAMDB_GETREF): (index of the last entry, its 32-byte nonce, entries in all).

    Raises:
        SeamOpsError: DATABASE_ERROR when no module was ever inserted.
    """
    entries = seam.database.entries
    if not entries:
        raise SeamOpsError(Result.DATABASE_ERROR, "SEAMDB is empty")
    return len(entries) - 1, entries[-1][0], len(entries)


def seamreport(
    seam: SeamState,
    report_type: int | bytes,
    report_data: bytes,
    tee_info_hash: bytes,
    *,
    index: int | None = None,
    nonce: bytes = b"",
) -> bytes:
    """SEAMREPORT, or SEAMDB_REPORT if ``index`` and ``nonce`` name a database entry.

    ``report_type`` is REPORTTYPE (4 bytes, or as a little-endian integer), ``report_data`` 64 bytes,
    ``tee_info_hash`` the SHA-384 of TDINFO.  Returns the first 512 bytes of a TDREPORT:
    REPORTMACSTRUCT (256), TEE_TCB_INFO (239), zeros (17).

    Raises:
        SeamOpsError: INPUT_ERROR for operands of a wrong size or without a loaded module,
            DATABASE_ERROR if there is no such entry.
    """
    kind = report_type.to_bytes(4, "little") if isinstance(report_type, int) else bytes(report_type)
    for name, value, size in (
        ("REPORTTYPE", kind, 4),
        ("REPORTDATA", report_data, REPORT_DATA_BYTES),
        ("the hash of TEE_INFO", tee_info_hash, HASH_BYTES),
    ):
        if len(value) != size:
            raise SeamOpsError(Result.INPUT_ERROR, f"{name} has {size} bytes, not {len(value)}")
    info = _tcb_info(seam, index, nonce)
    report = REPORTMACSTRUCT.new()
    report[0:4] = kind
    REPORTMACSTRUCT.cpusvn.set(report, seam.cpusvn)
    REPORTMACSTRUCT.tee_tcb_info_hash.set(report, hashlib.sha384(info).digest())
    REPORTMACSTRUCT.tee_info_hash.set(report, tee_info_hash)
    REPORTMACSTRUCT.report_data.set(report, report_data)
    REPORTMACSTRUCT.mac.set(report, _mac(seam, report))
    return bytes(report) + info + bytes(512 - REPORTMACSTRUCT.size - len(info))


def _tcb_info(seam: SeamState, index: int | None, nonce: bytes) -> bytes:
    """TEE_TCB_INFO out of SEAMEXTEND, or out of a database entry with the current SVN beside it."""
    current = bytes(seam.extend)
    if not SEAMEXTEND.valid.get(current):
        raise SeamOpsError(Result.INPUT_ERROR, "SEAMEXTEND does not describe a module")
    extend, valid, svn2 = current, TEE_TCB_INFO_VALID_BASE, bytes(16)
    if index is not None:
        entries = seam.database.entries
        if not 0 <= index < len(entries) or not hmac.compare_digest(entries[index][0], nonce):
            raise SeamOpsError(Result.DATABASE_ERROR, f"SEAMDB has no entry {index} with this nonce")
        extend, valid = entries[index][1], TEE_TCB_INFO_VALID_PRESERVING
        svn2 = SEAMEXTEND.tee_tcb_svn.get(current)
    info = TEE_TCB_INFO.new()
    TEE_TCB_INFO.valid.set(info, valid)
    TEE_TCB_INFO.tee_tcb_svn.set(info, SEAMEXTEND.tee_tcb_svn.get(extend))
    TEE_TCB_INFO.mrseam.set(info, SEAMEXTEND.mrseam.get(extend))
    TEE_TCB_INFO.mrsignerseam.set(info, SEAMEXTEND.mrsigner.get(extend))
    TEE_TCB_INFO.attributes.set(info, SEAMEXTEND.attributes.get(extend))
    TEE_TCB_INFO.tee_tcb_svn2.set(info, svn2)
    return bytes(info)


def _mac(seam: SeamState, report: bytes | bytearray) -> bytes:
    return hmac.digest(seam.fuses.report_key, bytes(report[:REPORT_MAC_COVERS]), "sha256")


def verify_mac(seam: SeamState, report_mac_struct: bytes) -> Result:
    """SEAMVERIFYREPORT of the 256 bytes of REPORTMACSTRUCT; also what EVERIFYREPORT2 gives an enclave.

    SUCCESS; INVALID_REPORTMACSTRUCT if the MAC is not of this machine and boot, or reserved bytes are
    set; INVALID_CPUSVN if it was made at a CPUSVN that this processor has not.
    """
    layout = REPORTMACSTRUCT
    if len(report_mac_struct) != layout.size or not layout.reserved_is_zero(report_mac_struct):
        return Result.INVALID_REPORTMACSTRUCT
    if layout.cpusvn.get(report_mac_struct) != seam.cpusvn:
        return Result.INVALID_CPUSVN
    given = layout.mac.get(report_mac_struct)
    if not hmac.compare_digest(_mac(seam, report_mac_struct), given):
        return Result.INVALID_REPORTMACSTRUCT
    return Result.SUCCESS


#: What each leaf does, given SEAM's state and the leaf's operands.
LEAVES: Final[dict[int, Callable[..., Any]]] = {
    Leaf.CAPABILITIES: lambda seam: capabilities(),
    Leaf.SEAMREPORT: seamreport,
    Leaf.SEAMDB_CLEAR: clear,
    Leaf.SEAMDB_INSERT: insert,
    Leaf.SEAMDB_GETREF: getref,
    Leaf.SEAMDB_REPORT: seamreport,
    Leaf.SEAMVERIFYREPORT: verify_mac,
}


class ReportVerifier:
    """The check of a report's MAC for an enclave on this machine, without the key.

    It satisfies the ``ReportVerifier`` protocol of ``swtdx.attestation``.
    """

    def __init__(self, seam: SeamState) -> None:
        self._seam = seam

    def verify(self, mac_struct: bytes) -> bool:
        """Whether these 256 bytes were made by this machine since its last boot."""
        return verify_mac(self._seam, mac_struct) is Result.SUCCESS
