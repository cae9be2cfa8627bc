"""A board: the devices of one TD, wired to its buses.

The hypervisor builds one, sends the guest's port and MMIO accesses to :attr:`Board.ports` and
:attr:`Board.mmio`, and calls :meth:`Board.poll` when :data:`wake` was called and before a vCPU sleeps.
A board is made for one run of a TD; a restart builds another, as a TD cannot be reset either.

It is composed of parts (:mod:`swtdx.devices.part`): :func:`standard_parts` says which a configuration has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from swtdx.arch.guest_map import ECAM_BYTES, GUEST_MAP
from swtdx.devices.acpi import AcpiBlob, AcpiConfig, build_acpi
from swtdx.devices.acpi.loader import AcpiFiles, acpi_files
from swtdx.devices.bus import MmioSpace, PortSpace
from swtdx.devices.dma import Dma
from swtdx.devices.fw_cfg import FwCfg, FwCfgContents
from swtdx.devices.part import Part, Wires
from swtdx.devices.parts import (
    Clock,
    Console,
    FirmwareConfig,
    InterruptController,
    Lpc,
    PciRoot,
    Power,
    Serial,
    Timer,
)
from swtdx.devices.pci.host import PciHost, devfn
from swtdx.devices.saved import In, Out, Saved
from swtdx.devices.serial import Uart
from swtdx.devices.virtio.console import VirtioConsole
from swtdx.devices.virtio.ports import PortConfig, VirtioPorts

#: The end of the PCI window: the I/O APIC's place on a PC, then the local APICs', then firmware.
PCI_WINDOW_END: Final = GUEST_MAP.pci_window_end
_P = TypeVar("_P", bound=Part)


class BoardError(ValueError):
    """A board that cannot be built."""


@dataclass(frozen=True, slots=True)
class BoardConfig:
    """What is on the board.  Addresses are GPAs.

    Args:
        apic_ids: one for each vCPU.
        pci_window: start of the PCI memory window, which ends at :data:`PCI_WINDOW_END`.
        console: a virtio console (hvc0).
        console_size: (columns, rows) of the terminal, if known.
        channels: further ports of the console, each with a name.
        serial: a 16550A at 0x3F8 (ttyS0), polled, because nothing carries its interrupt (:func:`build_board`
            says why).
        chipset: also the ICH9 LPC bridge and fw_cfg, which OVMF looks for; a kernel booted directly
            would only spend about 100 TD exits on them.
        fw_cfg: with ``chipset``: what firmware finds in fw_cfg beside the ACPI tables.
        ram: bytes of RAM below and above 4 GiB, for firmware that asks the CMOS.
        rtc_driver: declare the PC's clock to the operating system.  It is on the board either way (see
            :mod:`swtdx.devices.rtc`), and Linux reads the time from it when it starts; declared, it is
            also given a driver and /dev/rtc0, for about 50 more accesses, and the driver sets the time again.
        ecam: GPA (multiple of 256 MiB, inside the window) where ECAM answers from the start.
        mechanism1: configuration space at ports 0xCF8 and 0xCFC.  With ``ecam`` it can be left out:
            Linux then makes one access where it made two, about 350 fewer in a boot.
        ioapic: an I/O APIC, and ACPI that is not hardware-reduced: Linux then stops its tick when idle.
        more: each makes a part that is plugged in after all of these.
    """

    apic_ids: tuple[int, ...] = (0,)
    pci_window: int = GUEST_MAP.pci_window
    console: bool = True
    console_size: tuple[int, int] | None = None
    channels: tuple[PortConfig, ...] = ()
    serial: bool = True
    chipset: bool = False
    fw_cfg: FwCfgContents | None = None
    ram: tuple[int, int] | None = None
    rtc_driver: bool = False
    ecam: int | None = None
    mechanism1: bool = True
    ioapic: bool = False
    more: tuple[Callable[[], Part], ...] = ()

    def __post_init__(self) -> None:
        if self.pci_window % (1 << 20) or not 0 <= self.pci_window < PCI_WINDOW_END:
            raise BoardError(
                f"pci_window {self.pci_window:#x} must be a multiple of 1 MiB below {PCI_WINDOW_END:#x}"
            )
        if self.ecam is None and not self.mechanism1:
            raise BoardError("without mechanism1 configuration space needs an ecam address")
        if self.ecam is not None and (
            self.ecam % ECAM_BYTES or not self.pci_window <= self.ecam < PCI_WINDOW_END - ECAM_BYTES
        ):
            raise BoardError(
                f"ecam {self.ecam:#x} must be a multiple of 256 MiB and lie, with 256 MiB, in the PCI window"
            )


class Board:
    """The devices of one TD.

    Args:
        parts: what is on it, plugged in in this order.
        wires: what connects it to the hypervisor; without any it can still be described.
        apic_ids: one for each vCPU.
        window: the PCI memory window, start and end; BARs are placed downwards from its end.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        wires: Wires | None = None,
        *,
        apic_ids: tuple[int, ...] = (0,),
        window: tuple[int, int] = (GUEST_MAP.pci_window, GUEST_MAP.pci_window_end),
    ) -> None:
        self.wires = Wires() if wires is None else wires
        self.apic_ids = apic_ids
        #: Where the guest's IN and OUT go.
        self.ports = PortSpace()
        #: Where accesses to guest-physical addresses that are not memory go.
        self.mmio = MmioSpace()
        self.pci = PciHost()
        self.parts: list[Part] = []
        self._window, self._top = window
        for part in parts:
            self.add(part)
        firmware = self.find(FirmwareConfig)
        if firmware is not None:
            firmware.offer_acpi(self.acpi_files)

    # ------------------------------------------------------------------ composing
    def add(self, part: Part) -> None:
        """Plug ``part`` in.

        Raises:
            BusError, BoardError: see :meth:`swtdx.devices.part.Part.plug`.
        """
        part.plug(self)
        self.parts.append(part)

    def free_slot(self) -> int:
        """The lowest PCI device number that is free, from 1 on.

        Raises:
            BoardError: all 31 are taken.
        """
        taken = self.pci.functions
        for slot in range(1, 32):
            if devfn(slot) not in taken:
                return slot
        raise BoardError("the PCI bus has room for 31 devices beside the host bridge")

    def place(self, size: int) -> int:
        """A GPA in the PCI window for a BAR of ``size`` bytes (a power of two).

        From the top of the window downwards, away from where firmware starts placing.

        Raises:
            BoardError: the window is full.
        """
        at = self._top - size & -size
        ecam, ecam_end = self.pci.ecam
        if at < ecam_end and ecam < at + size:
            at = ecam - size & -size
        if at < self._window:
            raise BoardError(f"the PCI window has no room for another {size} bytes")
        self._top = at
        return at

    def find(self, kind: type[_P]) -> _P | None:
        """The first part of this kind, or None."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @property
    def console(self) -> VirtioConsole | VirtioPorts | None:
        """The virtio console, or None."""
        part = self.find(Console)
        return None if part is None else part.device

    @property
    def serial(self) -> Uart | None:
        """The UART, or None."""
        part = self.find(Serial)
        return None if part is None else part.uart

    @property
    def fw_cfg(self) -> FwCfg | None:
        """The firmware configuration interface, or None."""
        part = self.find(FirmwareConfig)
        return None if part is None else part.device

    # ------------------------------------------------------------------ running
    def poll(self) -> None:
        """Move what waits on the host's side: input to the guest, interrupts that were put off.

        Call it, on the thread that runs vCPUs, after ``wake`` was called and before a vCPU sleeps.
        """
        for part in self.parts:
            part.poll()

    # ------------------------------------------------------------------ snapshots
    def _owners(self) -> dict[str, Saved]:
        """All that the guest can reach, once, by a name that boards of the same parts share."""
        found: dict[int, tuple[str, object]] = {}
        for kind, space in (("ports", self.ports), ("memory", self.mmio)):
            for claim in space.claims:
                found.setdefault(id(claim.device), (f"{claim.name} at {kind} {claim.base:#x}", claim.device))
        for where, function in sorted(self.pci.functions.items()):
            name = f"PCI 00:{where >> 3:02x}.{where & 7}"
            found.setdefault(id(function), (name, function))
            for bar in function.bars:
                found.setdefault(id(bar.device), (f"{name} BAR {bar.index}", bar.device))
        owners = {}
        for name, owner in found.values():
            if not isinstance(owner, Saved):
                raise BoardError(
                    f"{name}: {type(owner).__name__} does not say how it is saved (save_state, load_state)"
                )
            owners[name] = owner
        return owners

    def save_state(self, out: Out) -> None:
        """Write down the state of every device (:class:`swtdx.devices.saved.Saved`).

        Raises:
            BoardError: a device of the user's own does not say how it is saved.
        """
        owners = self._owners()
        out.u32(len(owners))
        for name, owner in owners.items():
            out.text(name)
            owner.save_state(out)

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote, on a new board that was composed of the same parts.

        Raises:
            BoardError: see :meth:`save_state`.
            Exception: the board was another one, or the state makes no sense (``section.fail``).
        """
        owners = self._owners()
        if section.u32() != len(owners):
            raise section.fail("the board has other devices")
        for name, owner in owners.items():
            saved = section.text()
            if saved != name:
                raise section.fail(f"the board had {saved} where this has {name}")
            owner.load_state(section)
        # What was to be polled then still is.
        self.wires.wake()

    @property
    def failures(self) -> dict[str, str]:
        """Devices that stopped because their driver misused them, and why."""
        return {part.name: part.failure for part in self.parts if part.failure is not None}

    def acpi(
        self,
        base_gpa: int,
        *,
        ccel: tuple[int, int] | None = None,
        wakeup_mailbox: int | None = None,
        for_firmware: bool = False,
    ) -> AcpiBlob:
        """ACPI tables that describe this board, to lie from ``base_gpa`` on.

        Args:
            ccel: (GPA, bytes) of the TD's event log.
            wakeup_mailbox: GPA of the multiprocessor wakeup mailbox; needed for several vCPUs.
            for_firmware: firmware adds the mailbox and the log.

        Raises:
            AcpiError: see :func:`swtdx.devices.acpi.build_acpi`.
        """
        tables = AcpiConfig(
            apic_ids=self.apic_ids,
            wakeup_mailbox=wakeup_mailbox,
            memory_windows=(),
            serial_port=None,
            ccel=ccel,
            firmware_wakes=for_firmware,
        )
        for part in self.parts:
            tables = part.describe(tables)
        return build_acpi(tables, base_gpa)

    def acpi_files(self) -> AcpiFiles:
        """The tables as files of fw_cfg, which firmware puts into memory."""
        return acpi_files(self.acpi(0, for_firmware=True))


def standard_parts(
    config: BoardConfig, console_out: Callable[[bytes], None], serial_out: Callable[[bytes], None]
) -> list[Part]:
    """The parts of ``config``, in the order in which they are plugged in.

    The UART has no interrupt, with or without an I/O APIC: Linux polls ttyS0.  Its console is polled anyway,
    and a shell on it works, at some cost; hvc0 is the terminal to use.
    """
    root = PciRoot(config.pci_window, PCI_WINDOW_END, config.ecam, mechanism1=config.mechanism1)
    ioapic = InterruptController() if config.ioapic else None
    parts: list[Part] = [Power(ioapic), root, Timer(), Clock(declared=config.rtc_driver, ram=config.ram)]
    if ioapic is not None:
        parts.append(ioapic)
    if config.serial:
        parts.append(Serial(serial_out))
    if config.console:
        parts.append(Console(console_out, config.console_size, config.channels))
    if config.chipset:
        parts += [Lpc(), FirmwareConfig(config.fw_cfg)]
    return [*parts, *(make() for make in config.more)]


def build_board(
    config: BoardConfig,
    dma: Dma,
    send_msi: Callable[[int, int], None],
    *,
    console_out: Callable[[bytes], None],
    serial_out: Callable[[bytes], None] | None = None,
    power_off: Callable[[], None],
    restart: Callable[[], None],
    wake: Callable[[], None] = lambda: None,
    clock: Callable[[], int] = time.monotonic_ns,
    now: Callable[[], float] = time.time,
) -> Board:
    """A board with the devices of ``config``.

    Args:
        dma, send_msi, power_off, restart, wake, clock, now: see :class:`swtdx.devices.part.Wires`.
        console_out, serial_out: take what the guest prints, as it does; ``serial_out`` is
            ``console_out`` if it is not given.
    """
    return Board(
        standard_parts(config, console_out, console_out if serial_out is None else serial_out),
        Wires(dma, send_msi, power_off, restart, wake, clock, now),
        apic_ids=config.apic_ids,
        window=(config.pci_window, PCI_WINDOW_END),
    )


def describe_board(config: BoardConfig) -> Board:
    """A board with the devices of ``config`` that is never run: for its ACPI tables."""

    def nothing(_data: bytes) -> None:
        """No one listens."""

    return Board(
        standard_parts(config, nothing, nothing),
        apic_ids=config.apic_ids,
        window=(config.pci_window, PCI_WINDOW_END),
    )
