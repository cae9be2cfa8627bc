"""A board: the devices of one TD, wired to its buses.

The hypervisor builds one, sends the guest's port and MMIO accesses to :attr:`Board.ports` and
:attr:`Board.mmio`, and calls :meth:`Board.poll` when :data:`wake` was called and before a vCPU sleeps.
A board is made for one run of a TD; a restart builds another, as a TD cannot be reset either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swtdx.devices import power, rtc, serial, timer
from swtdx.devices.acpi import AcpiBlob, AcpiConfig, build_acpi
from swtdx.devices.bus import MmioSpace, PortSpace
from swtdx.devices.dma import Dma
from swtdx.devices.fw_cfg import FW_CFG_BASE, FW_CFG_PORTS, FwCfg
from swtdx.devices.pci.chipset import HostBridge, LpcBridge
from swtdx.devices.pci.host import CONFIG_BASE, CONFIG_PORTS, ConfigPorts, MemoryWindow, PciHost
from swtdx.devices.power import PowerBlock, ResetControl
from swtdx.devices.rtc import CmosRtc
from swtdx.devices.serial import Uart
from swtdx.devices.timer import StoppedTimer
from swtdx.devices.virtio.console import VirtioConsole
from swtdx.devices.virtio.pci import BAR_SIZE, VirtioPci

#: The end of the PCI window: the I/O APIC's place on a PC, then the local APICs', then firmware.
PCI_WINDOW_END: Final = 0xFEC0_0000
#: What Linux expects of ECAM: 256 buses; the tables offer only bus 0 of it.
_ECAM_BUS: Final = 1 << 20
_ECAM_BYTES: Final = 256 << 20
_CONSOLE_SLOT: Final = 1
_LPC_SLOT: Final = 31


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
        serial: a 16550A at 0x3F8 (ttyS0), polled, because nothing carries its interrupt (:func:`build_board`
            says why).
        chipset: also the ICH9 LPC bridge and fw_cfg, which OVMF looks for; a kernel booted directly
            would only spend about 100 TD exits on them.
        rtc_driver: declare the PC's clock to the operating system.  It is on the board either way (see
            :mod:`swtdx.devices.rtc`), and Linux reads the time from it when it starts; declared, it is
            also given a driver and /dev/rtc0, for about 50 more accesses.
        ecam: GPA (multiple of 256 MiB, inside the window) where ECAM answers from the start.
        mechanism1: configuration space at ports 0xCF8 and 0xCFC.  With ``ecam`` it can be left out:
            Linux then makes one access where it made two, about 350 fewer in a boot.
    """

    apic_ids: tuple[int, ...] = (0,)
    pci_window: int = 0xC000_0000
    console: bool = True
    console_size: tuple[int, int] | None = None
    serial: bool = True
    chipset: bool = False
    rtc_driver: bool = False
    ecam: int | None = None
    mechanism1: bool = True

    def __post_init__(self) -> None:
        if self.pci_window % (1 << 20) or not 0 <= self.pci_window < PCI_WINDOW_END:
            raise BoardError(
                f"pci_window {self.pci_window:#x} must be a multiple of 1 MiB below {PCI_WINDOW_END:#x}"
            )
        if self.ecam is None and not self.mechanism1:
            raise BoardError("without mechanism1 configuration space needs an ecam address")
        if self.ecam is not None and (
            self.ecam % _ECAM_BYTES or not self.pci_window <= self.ecam < PCI_WINDOW_END - _ECAM_BYTES
        ):
            raise BoardError(
                f"ecam {self.ecam:#x} must be a multiple of 256 MiB and lie, with 256 MiB, in the PCI window"
            )


class Board:
    """The devices of one TD.  Made by :func:`build_board`."""

    def __init__(
        self,
        config: BoardConfig,
        dma: Dma,
        send_msi: Callable[[int, int], None],
        *,
        console_out: Callable[[bytes], None],
        serial_out: Callable[[bytes], None],
        power_off: Callable[[], None],
        restart: Callable[[], None],
        wake: Callable[[], None],
        clock: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self.config = config
        #: Where the guest's IN and OUT go.
        self.ports = PortSpace()
        #: Where accesses to guest-physical addresses that are not memory go.
        self.mmio = MmioSpace()
        self.pci = PciHost()
        #: The virtio console, or None.
        self.console: VirtioConsole | None = None
        #: The UART, or None.
        self.serial: Uart | None = None
        #: The firmware configuration interface, or None.
        self.fw_cfg: FwCfg | None = None
        self._polled: list[VirtioPci] = []

        self.ports.register(
            power.PM_BASE, power.PM_LENGTH, PowerBlock(power_off, clock), name="power", widths=(1, 2, 4)
        )
        self.ports.register(
            CONFIG_BASE,
            CONFIG_PORTS,
            ConfigPorts(self.pci, ResetControl(restart), mechanism1=config.mechanism1),
            name="PCI configuration",
            widths=(1, 2, 4),
        )
        window = MemoryWindow(self.pci, config.pci_window)
        self.mmio.register(config.pci_window, PCI_WINDOW_END - config.pci_window, window, name="PCI memory")
        self.pci.add(0, HostBridge(self.pci, config.ecam))
        if config.serial:
            self.serial = Uart(serial_out)
            self.ports.register(serial.COM1, serial.PORTS, self.serial, name="COM1")
        self.ports.register(timer.BASE, timer.PORTS, StoppedTimer(), name="8254 timer")
        self.ports.register(rtc.RTC_BASE, rtc.RTC_PORTS, CmosRtc(now), name="RTC")
        if config.console:
            self.console = VirtioConsole(console_out, size=config.console_size, wake=wake)
            # The top of the window, away from a preset ECAM and from where firmware starts placing.
            self._add_virtio(_CONSOLE_SLOT, VirtioPci(self.console, dma, send_msi), PCI_WINDOW_END - BAR_SIZE)
        if config.chipset:
            self.pci.add(_LPC_SLOT, LpcBridge())
            self.fw_cfg = FwCfg(dma)
            self.ports.register(FW_CFG_BASE, FW_CFG_PORTS, self.fw_cfg, name="fw_cfg", widths=(1, 2, 4))

    def _add_virtio(self, slot: int, function: VirtioPci, address: int) -> None:
        self.pci.add(slot, function)
        # A kernel without firmware finds its BARs placed, and need not do it itself.
        function.place_bar(0, address)
        self._polled.append(function)

    def poll(self) -> None:
        """Move what waits on the host's side: input to the guest, interrupts that were put off.

        Call it, on the thread that runs vCPUs, after ``wake`` was called and before a vCPU sleeps.
        """
        for function in self._polled:
            function.poll()

    @property
    def failures(self) -> dict[str, str]:
        """Devices that stopped because their driver misused them, and why."""
        return {
            f"virtio device {function.device.device_id}": function.failure
            for function in self._polled
            if function.failure is not None
        }

    def _memory_windows(self) -> tuple[tuple[int, int], ...]:
        """Where devices' memory may be: the PCI window without ECAM, as (GPA, bytes)."""
        start, ecam = self.config.pci_window, self.config.ecam
        if ecam is None:
            return ((start, PCI_WINDOW_END - start),)
        parts = ((start, ecam), (ecam + _ECAM_BYTES, PCI_WINDOW_END))
        return tuple((low, high - low) for low, high in parts if low < high)

    def acpi(
        self, base_gpa: int, *, ccel: tuple[int, int] | None = None, wakeup_mailbox: int | None = None
    ) -> AcpiBlob:
        """ACPI tables that describe this board, to lie from ``base_gpa`` on.

        Args:
            ccel: (GPA, bytes) of the TD's event log.
            wakeup_mailbox: GPA of the multiprocessor wakeup mailbox; needed for several vCPUs.

        Raises:
            AcpiError: see :func:`swtdx.devices.acpi.build_acpi`.
        """
        config = self.config
        return build_acpi(
            AcpiConfig(
                apic_ids=config.apic_ids,
                wakeup_mailbox=wakeup_mailbox,
                memory_windows=self._memory_windows(),
                serial_port=serial.COM1 if config.serial else None,
                ccel=ccel,
                ecam=None if config.ecam is None else (config.ecam, _ECAM_BUS),
                cmos_rtc=config.rtc_driver,
            ),
            base_gpa,
        )


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

    Why no I/O APIC: only the UART would use it, and Linux makes some 60 MMIO accesses to set one up.
    Without it and without an interrupt in the DSDT, Linux polls ttyS0: its console is polled anyway,
    and a shell on it works, at some cost; hvc0 is the terminal to use.

    Args:
        dma: the guest's shared memory.
        send_msi: delivers a message-signalled interrupt (address, data);
            :meth:`swtdx.devices.msi.MsiRouter.deliver` does.  Must not block.
        console_out, serial_out: take what the guest prints, as it does; ``serial_out`` is
            ``console_out`` if it is not given.
        power_off, restart: the guest asked for it, on the vCPU's thread.
        wake: there is something for :meth:`Board.poll` to do.  Called from any thread; must not block.
        clock: nanoseconds from any fixed moment, for timers.
        now: seconds since 1970 in UTC, for the clock.
    """
    return Board(
        config,
        dma,
        send_msi,
        console_out=console_out,
        serial_out=console_out if serial_out is None else serial_out,
        power_off=power_off,
        restart=restart,
        wake=wake,
        clock=clock,
        now=now,
    )
