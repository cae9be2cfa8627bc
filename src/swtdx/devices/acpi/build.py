"""Put the tables together: addresses, root pointer, order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from swtdx.arch.guest_map import GUEST_MAP
from swtdx.arch.units import PAGE
from swtdx.devices import power, rtc, serial
from swtdx.devices.acpi import tables
from swtdx.devices.acpi.dsdt import aml_device, build_dsdt

_ALIGN: Final = 64


class AcpiError(ValueError):
    """A platform that cannot be described."""


@dataclass(frozen=True, slots=True)
class AcpiConfig:
    """What the tables describe.  Addresses are GPAs, lengths are bytes.

    ``wakeup_mailbox`` is needed when there is more than one vCPU; ``ccel`` and ``ecam`` are
    (address, length).
    """

    apic_ids: tuple[int, ...] = (0,)
    wakeup_mailbox: int | None = None
    memory_windows: tuple[tuple[int, int], ...] = (GUEST_MAP.pci_memory,)
    serial_port: int | None = serial.COM1
    serial_irq: int | None = None
    ccel: tuple[int, int] | None = None
    ecam: tuple[int, int] | None = None
    cmos_rtc: bool = False
    #: The I/O APIC, its first interrupt, and how many it has; with one the platform is not hardware-reduced.
    ioapic: tuple[int, int, int] | None = None
    #: Several vCPUs need no mailbox here: firmware adds its own.
    firmware_wakes: bool = False
    #: AML of further devices in the scope of the system bus.
    devices: tuple[bytes, ...] = ()

    def with_device(self, label: str, hardware_id: str, *resources: bytes, uid: int = 0) -> AcpiConfig:
        """These tables with one more device; ``resources`` are resource descriptors in AML."""
        return replace(self, devices=(*self.devices, aml_device(label, hardware_id, uid, *resources)))

    def __post_init__(self) -> None:
        if not self.apic_ids or len(set(self.apic_ids)) != len(self.apic_ids):
            raise AcpiError(f"APIC ids {list(self.apic_ids)}: give one for each vCPU, all different")
        if len(self.apic_ids) > 1 and self.wakeup_mailbox is None and not self.firmware_wakes:
            raise AcpiError("several vCPUs need a wakeup_mailbox: a TD has no INIT and SIPI")
        if self.wakeup_mailbox is not None and self.wakeup_mailbox % PAGE:
            raise AcpiError(f"the wakeup mailbox at {self.wakeup_mailbox:#x} is not page-aligned")


@dataclass(frozen=True, slots=True)
class AcpiBlob:
    """Tables to be put into guest memory: (GPA, bytes) in rising order, and where the root pointer is."""

    tables: list[tuple[int, bytes]]
    rsdp_gpa: int
    _by_name: dict[str, bytes] = field(repr=False)

    @property
    def base(self) -> int:
        """The lowest GPA used."""
        return self.tables[0][0]

    @property
    def length(self) -> int:
        """Bytes from :attr:`base` to the end of the last table."""
        last, data = self.tables[-1]
        return last + len(data) - self.base

    def image(self) -> bytes:
        """All tables as one piece of :attr:`length` bytes, for :attr:`base`."""
        whole = bytearray(self.length)
        for gpa, data in self.tables:
            whole[gpa - self.base : gpa - self.base + len(data)] = data
        return bytes(whole)

    def __getitem__(self, signature: str) -> bytes:
        """A table by its signature: ``"RSDP"``, ``"XSDT"``, ``"FACP"``, ``"APIC"``, ``"DSDT"``, ..."""
        return self._by_name[signature]

    def __contains__(self, signature: str) -> bool:
        return signature in self._by_name


def build_acpi(config: AcpiConfig, base_gpa: int) -> AcpiBlob:
    """All tables for ``config``, to lie from ``base_gpa`` (16-byte aligned) on, the RSDP first.

    Deterministic.  The length does not depend on ``base_gpa``: build once at 0 to learn it.

    Raises:
        AcpiError: ``base_gpa`` is not aligned, or the tables would not lie below 4 GiB.
    """
    if base_gpa % 16:
        raise AcpiError(f"the RSDP must be aligned to 16 bytes, {base_gpa:#x} is not")
    placed: list[tuple[int, bytes]] = []
    by_name: dict[str, bytes] = {}
    cursor = base_gpa + _ALIGN  # the RSDP's place

    def place(data: bytes) -> int:
        nonlocal cursor
        at = cursor
        placed.append((at, data))
        by_name[data[:4].decode()] = data
        cursor = (at + len(data) + _ALIGN - 1) // _ALIGN * _ALIGN
        return at

    dsdt = place(
        build_dsdt(
            memory_windows=list(config.memory_windows),
            serial_port=config.serial_port,
            serial_irq=config.serial_irq,
            ecam=config.ecam,
            rtc=(rtc.RTC_BASE, rtc.RTC_PORTS) if config.cmos_rtc else None,
            more=config.devices,
        )
    )
    listed = [
        place(
            tables.fadt(
                dsdt,
                sleep_control=power.SLEEP_CONTROL_PORT,
                sleep_status=power.SLEEP_STATUS_PORT,
                reset=(power.RESET_PORT, power.RESET_VALUE),
                cmos_rtc=config.cmos_rtc,
                rtc_century=rtc.CENTURY,
                pm1=None if config.ioapic is None else (power.PM_BASE, power.PM1_CONTROL_PORT),
            )
        ),
        place(tables.madt(config.apic_ids, config.wakeup_mailbox, config.ioapic)),
    ]
    if config.ccel is not None:
        listed.append(place(tables.ccel(*config.ccel)))
    if config.ecam is not None:
        base, length = config.ecam
        listed.append(place(tables.mcfg(base, length >> 20)))
    root = place(tables.xsdt(listed))
    pointer = tables.rsdp(root)
    placed.insert(0, (base_gpa, pointer))
    by_name["RSDP"] = pointer
    if cursor > 1 << 32:
        raise AcpiError(f"tables from {base_gpa:#x} on would not lie below 4 GiB")
    return AcpiBlob(placed, base_gpa, by_name)
