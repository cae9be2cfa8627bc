"""ReportFatalError: what a guest says when it gives up (ghci.md §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import ghci
from swtdx.arch import regs as r
from swtdx.arch.units import PAGE

#: Where the message lies, 8 bytes each, in this order.
_MESSAGE: Final = tuple(r.number(name) for name in ghci.FATAL_MESSAGE)


def describe(gpr: list[int], read_shared: Callable[[int, int], bytes]) -> str:
    """The error code and the message in words.

    Args:
        gpr: the guest's registers as the TDVMCALL passed them, RCX holding the mask of those.
        read_shared: shared memory: GPA without the shared bit, bytes.  Only used for a longer message in
            memory; may raise anything, which is then left out.
    """
    code = gpr[r.R12]
    # As QEMU: a register that the guest does not pass is not part of the message.
    passed = (register for register in _MESSAGE if gpr[r.RCX] >> register & 1)
    words = b"".join(gpr[register].to_bytes(8, "little") for register in passed)
    message = _text(words)
    if code & ghci.FATAL_GPA_VALID:
        try:
            message = _text(read_shared(gpr[r.R13], PAGE)) or message
        except Exception:
            message = f"{message} (and a longer message at GPA {gpr[r.R13]:#x} that cannot be read)".strip()
    code &= ~ghci.FATAL_GPA_VALID
    if not code:
        return message or "no message"
    return f"error code {code:#x}: {message}" if message else f"error code {code:#x}"


def _text(data: bytes) -> str:
    """Printable text up to the first NUL; a terminal must not be at a guest's mercy."""
    text = data.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
