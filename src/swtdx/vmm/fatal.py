"""ReportFatalError: what a guest says when it gives up (ghci.md §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import regs as r

#: Where the message lies, 8 bytes each, in this order.
_MESSAGE: Final = (r.R14, r.R15, r.RBX, r.RDI, r.RSI, r.R8, r.R9, r.RDX)
_GPA_VALID: Final = 1 << 63
_PAGE: Final = 4096


def describe(gpr: list[int], read_shared: Callable[[int, int], bytes]) -> str:
    """The error code and the message in words.

    Args:
        gpr: the guest's registers as the TDVMCALL passed them.
        read_shared: shared memory: GPA without the shared bit, bytes.  Only used for a longer message in
            memory; may raise anything, which is then left out.
    """
    code = gpr[r.R12]
    words = b"".join(gpr[register].to_bytes(8, "little") for register in _MESSAGE)
    message = _text(words)
    if code & _GPA_VALID:
        try:
            message = _text(read_shared(gpr[r.R13], _PAGE)) or message
        except Exception:
            message = f"{message} (and a longer message at GPA {gpr[r.R13]:#x} that cannot be read)".strip()
    code &= ~_GPA_VALID
    if not code:
        return message or "no message"
    return f"error code {code:#x}: {message}" if message else f"error code {code:#x}"


def _text(data: bytes) -> str:
    """Printable text up to the first NUL; a terminal must not be at a guest's mercy."""
    text = data.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
