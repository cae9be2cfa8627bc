"""Guests that are Python generators: the instructions that a program yields, and what it often does.

A program is called with its :class:`Script` and yields operations; each ``yield`` returns what the
instruction gave.  A fault is a :class:`GuestFault`, raised where the program stands.  ``docs/engine.md`` says
more.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from swtdx.arch import ghci
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.machine.engine.scripted import (
    Cli,
    Cpuid,
    Fetch,
    GuestFault,
    Hlt,
    In,
    MovFromCr,
    MovToCr,
    Operation,
    Out,
    Pause,
    Program,
    Rdmsr,
    Rdtsc,
    Read,
    Registers,
    Script,
    Sti,
    Tdcall,
    TripleFault,
    Undefined,
    Vmcall,
    Wbinvd,
    Write,
    Wrmsr,
    Xsetbv,
)

__all__ = [
    "RAM", "RAM_BYTES", "SHARED", "Cli", "Cpuid", "Fetch", "GuestFault", "Hlt", "In", "MovFromCr", "MovToCr",
    "Operation", "Out", "Pause", "Program", "Rdmsr", "Rdtsc", "Read", "Registers", "Running", "Script", "Sti",
    "Tdcall", "TripleFault", "Undefined", "Vmcall", "Wbinvd", "Write", "Wrmsr", "Xsetbv", "accept", "io_in",
    "io_out", "map_gpa", "mmio_read", "mmio_write", "power_off", "tdcall", "vmcall",
]  # fmt: skip

#: Where a scripted TD has private memory that it may accept: GPA, and bytes.
RAM: Final = 0x400_0000
RAM_BYTES: Final = 4 << 20
#: The bit that makes a GPA a shared one (GPA width 48).
SHARED: Final = 1 << 47
_POWER_OFF: Final = (0x605, 0x20)

#: What a program, and the helpers here, yield.
Running = Generator[Operation, Any, Any]


def tdcall(leaf: str, **registers: int) -> Running:
    """TDCALL of the leaf called so (``"TDG.VP.INFO"``): the registers after it.

    Raises:
        KeyError: there is no such leaf.
    """
    return (yield Tdcall(rax=GUEST_BY_NAME[leaf].number, **registers))


def accept(gpa: int, size: int = 4096) -> Running:
    """Accept private memory page by page, as a guest must before it uses it.

    Raises:
        ValueError: the module refuses a page.
    """
    for page in range(gpa, gpa + size, 4096):
        after = yield from tdcall("TDG.MEM.PAGE.ACCEPT", rcx=page)
        if after.rax >> 63:
            raise ValueError(f"TDG.MEM.PAGE.ACCEPT of {page:#x}: {after.rax:#x}")


def vmcall(function: str | int, *operands: int, mask: int = ghci.BASIC_MASK) -> Running:
    """TDG.VP.VMCALL of a sub-function of the GHCI (``"MapGPA"``), R12 and up its operands.

    ``mask`` says which registers cross over (RCX); R10 to R15 by default.  Returned are the registers after
    it: ``.r10`` is the status, ``.r11`` and up what came back.

    Raises:
        KeyError: no sub-function is called so.
    """
    number = function if isinstance(function, int) else ghci.CALLS_BY_NAME[function.lower()].number
    named = {f"r{12 + place}": value for place, value in enumerate(operands)}
    return (yield Tdcall(rax=0, rcx=mask, r10=0, r11=number, **named))


def io_in(port: int, size: int = 1) -> Running:
    """IN by TDVMCALL: ``size`` 1, 2 or 4 bytes from ``port``."""
    return (yield from vmcall(ghci.IO, size, 0, port)).r11


def io_out(port: int, value: int, size: int = 1) -> Running:
    """OUT by TDVMCALL."""
    yield from vmcall(ghci.IO, size, 1, port, value)


def mmio_read(gpa: int, size: int = 4) -> Running:
    """A read of a device's register by TDVMCALL, as a guest's #VE handler makes of it."""
    return (yield from vmcall(ghci.MMIO, size, 0, gpa | SHARED, 0)).r11


def mmio_write(gpa: int, value: int, size: int = 4) -> Running:
    """A write to a device's register by TDVMCALL."""
    yield from vmcall(ghci.MMIO, size, 1, gpa | SHARED, value)


def map_gpa(gpa: int, size: int, *, shared: bool) -> Running:
    """MapGPA: make memory shared, or private; the status (0: done)."""
    return (yield from vmcall(ghci.MAP_GPA, gpa | (SHARED if shared else 0), size)).r10


def power_off() -> Running:
    """Switch the TD off, through ACPI's register.  What a program that returns does by itself."""
    yield from io_out(*_POWER_OFF)
