"""The ACPI tables themselves, as bytes.  Deterministic: the same arguments, the same bytes.

Source: ACPI 6.5, chapter 5; PCI Firmware Specification 3.3 (MCFG); the CCEL table is ACPI 6.5,
5.2.34 (type 2 is TDX).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from swtdx.arch.x86 import LOCAL_APIC_BASE

OEM_ID: Final = b"SWTDX "
OEM_TABLE_ID: Final = b"SWTDX_TD"
OEM_REVISION: Final = 1
CREATOR_ID: Final = b"SWTD"
CREATOR_REVISION: Final = 1

# FADT: offsets from the table's start
_FADT_LENGTH: Final = 276
_FADT_FLAGS: Final = 112
# Fixed feature flags
_WBINVD: Final = 1 << 0
_PWR_BUTTON: Final = 1 << 4
_SLP_BUTTON: Final = 1 << 5
_RESET_REG_SUP: Final = 1 << 10
_HW_REDUCED: Final = 1 << 20
# IA-PC boot architecture flags
_NO_VGA: Final = 1 << 2
_NO_CMOS_RTC: Final = 1 << 5
_SYSTEM_IO: Final = 1

_MADT_LOCAL_APIC, _MADT_IO_APIC, _MADT_OVERRIDE, _MADT_LOCAL_X2APIC, _MADT_WAKEUP = 0, 1, 2, 9, 16
#: The interrupt of ACPI's events, as on a PC.
SCI: Final = 9
_ISA_INTERRUPTS: Final = 16
_ACTIVE_HIGH: Final = 1
#: Not level-triggered as on a PC: a TD's hypervisor does not see the end of an interrupt.
_EDGE: Final = 1 << 2
_MADT_ENABLED: Final = 1


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of ``data`` and itself a multiple of 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table: the 36-byte header with its checksum, then ``body``."""
    header = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        36 + len(body),
        revision,
        0,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        CREATOR_ID,
        CREATOR_REVISION,
    )
    raw = bytearray(header + body)
    raw[9] = checksum(raw)
    return bytes(raw)


def rsdp(xsdt: int) -> bytes:
    """The root pointer, revision 2 (36 bytes), for an XSDT at GPA ``xsdt``; no RSDT."""
    raw = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt, 0))
    raw[8] = checksum(raw[:20])
    raw[32] = checksum(raw)
    return bytes(raw)


def xsdt(addresses: Sequence[int]) -> bytes:
    """The list of the other tables' GPAs."""
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def _register(port: int, bits: int) -> bytes:
    """A generic address structure for an I/O port register of 8, 16 or 32 bits."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, bits, 0, {8: 1, 16: 2, 32: 3}[bits], port)


def fadt(
    dsdt: int,
    *,
    sleep_control: int,
    sleep_status: int,
    reset: tuple[int, int],
    cmos_rtc: bool,
    rtc_century: int = 0,
    pm1: tuple[int, int] | None = None,
) -> bytes:
    """The FADT, revision 6.5, of a hardware-reduced platform, or of one with the fixed registers of ``pm1``.

    Args:
        dsdt: GPA of the DSDT.
        sleep_control, sleep_status: ports of the sleep registers, one byte each.
        reset: port of the reset register and the byte to write to it.
        cmos_rtc: whether the PC's clock is there; ``rtc_century`` is its century register's index.
        pm1: ports of the PM1a event block (4 bytes) and control block (2 bytes), whose interrupt is
            :data:`SCI`; None for a hardware-reduced platform, which has the sleep registers instead.
    """
    raw = bytearray(table(b"FACP", 6, bytes(_FADT_LENGTH - 36)))
    boot_flags = _NO_VGA | (0 if cmos_rtc else _NO_CMOS_RTC)
    # No fixed power or sleep button: they would be events, and a hardware-reduced platform has none.
    flags = _WBINVD | _PWR_BUTTON | _SLP_BUTTON | _RESET_REG_SUP | (_HW_REDUCED if pm1 is None else 0)
    struct.pack_into("<I", raw, 40, dsdt if dsdt < 1 << 32 else 0)
    raw[108] = rtc_century if cmos_rtc else 0
    struct.pack_into("<H", raw, 109, boot_flags)
    struct.pack_into("<I", raw, _FADT_FLAGS, flags)
    port, value = reset
    raw[116:128] = _register(port, 8)
    raw[128] = value
    raw[131] = 5  # minor version
    struct.pack_into("<Q", raw, 140, dsdt)
    if pm1 is None:
        raw[244:256] = _register(sleep_control, 8)
        raw[256:268] = _register(sleep_status, 8)
    else:
        events, control = pm1
        struct.pack_into("<H", raw, 46, SCI)
        struct.pack_into("<I", raw, 56, events)
        struct.pack_into("<I", raw, 64, control)
        raw[88], raw[89] = 4, 2
        raw[148:160] = _register(events, 32)
        raw[172:184] = _register(control, 16)
    raw[268:276] = b"SWTDX".ljust(8, b"\0")  # hypervisor vendor identity
    raw[9] = 0
    raw[9] = checksum(raw)
    return bytes(raw)


def madt(
    apic_ids: Sequence[int], wakeup_mailbox: int | None = None, ioapic: tuple[int, int, int] | None = None
) -> bytes:
    """The MADT, revision 5: one local (x2)APIC each, no 8259s.

    Args:
        apic_ids: in order of processor uid 0, 1, ...
        wakeup_mailbox: GPA of the multiprocessor wakeup mailbox (4 KiB, aligned), through which an
            operating system starts the other processors of a TD.
        ioapic: GPA of the I/O APIC, its first interrupt, and how many it has; None if there is none.
    """
    entries = []
    for uid, apic_id in enumerate(apic_ids):
        if apic_id < 0xFF:
            entries.append(struct.pack("<BBBBI", _MADT_LOCAL_APIC, 8, uid, apic_id, _MADT_ENABLED))
        else:
            entries.append(struct.pack("<BBHIII", _MADT_LOCAL_X2APIC, 16, 0, apic_id, _MADT_ENABLED, uid))
    if ioapic is not None:
        # An ISA interrupt that is not said to be elsewhere is looked for at the input of its number; all for
        # which there is none share one with the SCI, which comes first: Linux calls the input by it.
        address, first, pins = ioapic
        entries.append(struct.pack("<BBBBII", _MADT_IO_APIC, 12, 0, 0, address, first))
        absent = [irq for irq in range(_ISA_INTERRUPTS) if not first <= irq < first + pins]
        entries += [
            struct.pack("<BBBBIH", _MADT_OVERRIDE, 10, 0, irq, SCI, _ACTIVE_HIGH | _EDGE)
            for irq in (SCI, *absent)
        ]
    if wakeup_mailbox is not None:
        entries.append(struct.pack("<BBHIQ", _MADT_WAKEUP, 16, 0, 0, wakeup_mailbox))
    return table(b"APIC", 5, struct.pack("<II", LOCAL_APIC_BASE, 0) + b"".join(entries))


def ccel(log_address: int, log_length: int) -> bytes:
    """The CCEL table: where a TD's event log is (GPA) and how many bytes are reserved for it."""
    return table(b"CCEL", 1, struct.pack("<BBHQQ", 2, 0, 0, log_length, log_address))


def mcfg(base: int, buses: int) -> bytes:
    """The MCFG table: ECAM for buses 0 to ``buses`` - 1 of segment 0 at GPA ``base``."""
    return table(b"MCFG", 1, bytes(8) + struct.pack("<QHBB4x", base, 0, 0, buses - 1))
