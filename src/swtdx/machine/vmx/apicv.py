"""APIC virtualisation: the virtual-APIC page, virtual-interrupt delivery, posted interrupts.

Source: Intel SDM volume 3, chapter 30.  A register with x2APIC MSR 0x800+n is at byte 16*n.

A guest in SEAM non-root takes no posted vectors 0 to 30: its hypervisor must not raise exceptions in it
(Intel's security specification for TD guests, and the GHCI).
"""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch.x86 import APIC_IRR, APIC_ISR, APIC_PPR, APIC_TPR

_U32: Final = struct.Struct("<I")
#: The vectors that may not be posted to a guest in SEAM.
_EXCEPTIONS: Final = (1 << 31) - 1


def _highest(page: memoryview, base: int) -> int:
    """The highest vector set in a 256-bit register (8 words, 16 bytes apart), 0 if none."""
    for word in range(7, -1, -1):
        bits: int = _U32.unpack_from(page, base + 16 * word)[0]
        if bits:
            return 32 * word + bits.bit_length() - 1
    return 0


def _change(page: memoryview, base: int, vector: int, on: bool) -> None:
    where = base + 16 * (vector >> 5)
    bits: int = _U32.unpack_from(page, where)[0]
    mask = 1 << (vector & 31)
    _U32.pack_into(page, where, bits | mask if on else bits & ~mask)


class VirtualApic:
    """Operations on a virtual-APIC page and a guest interrupt status (SVI in 15:8, RVI in 7:0).

    Every method that changes the status returns the new one.
    """

    @staticmethod
    def request(page: memoryview, status: int, vector: int) -> int:
        """An interrupt arrives: set its IRR bit."""
        _change(page, APIC_IRR, vector, True)
        return status & 0xFF00 | max(status & 0xFF, vector)

    @staticmethod
    def deliverable(page: memoryview, status: int) -> int | None:
        """The vector to deliver now, if its priority is above the processor's."""
        vector = status & 0xFF
        return vector if vector & 0xF0 > page[APIC_PPR] & 0xF0 else None

    @staticmethod
    def delivered(page: memoryview, status: int) -> int:
        """Virtual-interrupt delivery of RVI."""
        vector = status & 0xFF
        _change(page, APIC_ISR, vector, True)
        _change(page, APIC_IRR, vector, False)
        page[APIC_PPR] = vector & 0xF0
        return vector << 8 | _highest(page, APIC_IRR)

    @staticmethod
    def update_ppr(page: memoryview, status: int) -> None:
        """PPR := the higher of TPR and the class of the vector in service."""
        in_service = status >> 8
        tpr = page[APIC_TPR]
        page[APIC_PPR] = tpr if tpr >> 4 >= in_service >> 4 else in_service & 0xF0

    @classmethod
    def end_of_interrupt(cls, page: memoryview, status: int) -> int:
        """EOI: the vector in service leaves the ISR."""
        in_service = status >> 8
        if in_service:
            _change(page, APIC_ISR, in_service, False)
        status = _highest(page, APIC_ISR) << 8 | status & 0xFF
        cls.update_ppr(page, status)
        return status

    @classmethod
    def set_tpr(cls, page: memoryview, status: int, value: int) -> None:
        """Write the task-priority register (8 bits)."""
        _U32.pack_into(page, APIC_TPR, value & 0xFF)
        cls.update_ppr(page, status)

    @staticmethod
    def read(page: memoryview, msr: int) -> int:
        """The register of x2APIC MSR ``msr`` (0x800-0x83F)."""
        value: int = _U32.unpack_from(page, (msr - 0x800) * 16)[0]
        return value


def drain_posted(descriptor: memoryview) -> list[int]:
    """Take every vector out of a posted-interrupt descriptor (64 bytes) and clear its ON bit.

    Those of exceptions are dropped.
    """
    requests = int.from_bytes(descriptor[:32], "little") & ~_EXCEPTIONS
    descriptor[:32] = bytes(32)
    descriptor[32] &= 0xFE
    vectors = []
    while requests:
        low = requests & -requests
        vectors.append(low.bit_length() - 1)
        requests ^= low
    return vectors
