"""MRTD and the RTMRs (measurement.md)."""

from __future__ import annotations

import hashlib
from typing import Final

from swtdx.arch.control_structs import TDCS, TDCS_RTMRS
from swtdx.module import sha384

_PAGE_ADD: Final = b"MEM.PAGE.ADD".ljust(16, b"\0")
_EXTEND: Final = b"MR.EXTEND".ljust(16, b"\0")
_REST: Final = bytes(104)
_AT: Final = TDCS.mrtd_context.offset
_END: Final = _AT + sha384.STATE_SIZE


def start(tdcs: memoryview) -> None:
    """Begin MRTD (TDH.MNG.INIT)."""
    tdcs[_AT:_END] = sha384.initial()


def page_added(tdcs: memoryview, gpa: int) -> None:
    """Extend MRTD by the block of TDH.MEM.PAGE.ADD."""
    tdcs[_AT:_END] = sha384.update(tdcs[_AT:_END], _PAGE_ADD + gpa.to_bytes(8, "little") + _REST)


def chunk_extended(tdcs: memoryview, gpa: int, chunk: memoryview) -> None:
    """Extend MRTD by the block and the 256 bytes of TDH.MR.EXTEND."""
    block = b"".join((_EXTEND, gpa.to_bytes(8, "little"), _REST, chunk))
    tdcs[_AT:_END] = sha384.update(tdcs[_AT:_END], block)


def finish(tdcs: memoryview) -> None:
    """Close MRTD (TDH.MR.FINALIZE)."""
    TDCS.mrtd.set(tdcs, sha384.digest(tdcs[_AT:_END]))


def extend_rtmr(tdcs: memoryview, index: int, data: bytes) -> None:
    """RTMR[index] := SHA-384(RTMR[index] || 48 bytes)."""
    field = TDCS_RTMRS[index]
    field.set(tdcs, hashlib.sha384(field.get(tdcs) + data).digest())
