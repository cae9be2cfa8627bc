"""The DSDT: sleep state S5, the serial port, and the PCI root.  No methods: there is nothing to do.

What is left out saves TD exits or work: no processor objects (the MADT says all that Linux needs; with
them its C-state driver would poll before it halts), no interrupt routing (devices use MSI-X), no
keyboard or event device.
"""

from __future__ import annotations

from collections.abc import Sequence

from swtdx.devices import power
from swtdx.devices.acpi import aml, tables
from swtdx.devices.pci.host import CONFIG_BASE, CONFIG_PORTS
from swtdx.devices.serial import PORTS as UART_PORTS


def build_dsdt(
    *,
    memory_windows: list[tuple[int, int]],
    serial_port: int | None,
    serial_irq: int | None = None,
    ecam: tuple[int, int] | None = None,
    rtc: tuple[int, int] | None = None,
    more: Sequence[bytes] = (),
) -> bytes:
    """The table.

    Args:
        memory_windows: (base GPA, length) of what the PCI root passes on.
        serial_port: base port of a 16550A, or None.
        serial_irq: its ISA interrupt, or None for polling.
        ecam: (base GPA, length) to be reserved.
        rtc: (base port, ports) of the CMOS clock, or None.
        more: AML of further devices.
    """
    devices = [_pci_root(memory_windows)]
    if serial_port is not None:
        devices.append(_serial(serial_port, serial_irq))
    if rtc is not None:
        devices.append(aml_device("RTC0", "PNP0B00", 0, aml.io_port(*rtc)))
    if ecam is not None:
        # Linux trusts ECAM only where a motherboard resource reserves it.
        devices.append(aml_device("MBRD", "PNP0C02", 0, aml.memory32_fixed(*ecam)))
    devices += more
    sleep_type = aml.integer(power.S5_SLEEP_TYPE)
    body = aml.scope("\\_SB", *devices) + aml.name(
        "\\_S5", aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0))
    )
    return tables.table(b"DSDT", 2, body)


def aml_device(label: str, hardware_id: str, uid: int, *resources: bytes) -> bytes:
    """A device object with its hardware id and its resources (resource descriptors in AML)."""
    return aml.device(
        label,
        aml.name("_HID", aml.eisa_id(hardware_id)),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CRS", aml.resource_template(*resources)),
    )


def _serial(port: int, interrupt: int | None) -> bytes:
    resources = [aml.io_port(port, UART_PORTS)]
    if interrupt is not None:
        resources.append(aml.irq(interrupt))
    return aml_device("COM1", "PNP0501", 0, *resources)


def _pci_root(memory_windows: list[tuple[int, int]]) -> bytes:
    # PNP0A03 and not the PCI Express root PNP0A08: without ECAM and _OSC the latter only makes Linux
    # ask for services that are not there.
    windows = [aml.memory_window(base, length) for base, length in memory_windows]
    after = CONFIG_BASE + CONFIG_PORTS
    return aml_device(
        "PCI0",
        "PNP0A03",
        0,
        aml.bus_window(0, 1),
        aml.io_port(CONFIG_BASE, CONFIG_PORTS),
        aml.io_window(0, CONFIG_BASE),
        aml.io_window(after, 0x1_0000 - after),
        *windows,
    )
