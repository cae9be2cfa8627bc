"""The parts of our boards: each device of this room, plugged in."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from swtdx.arch.guest_map import ECAM_BUS_BYTES, IOAPIC_GPA
from swtdx.arch.units import PAGE
from swtdx.devices import power, rtc, serial, timer
from swtdx.devices.acpi import AcpiConfig
from swtdx.devices.acpi.loader import LOADER_FILE, RSDP_FILE, TABLES_FILE, AcpiFiles
from swtdx.devices.acpi.tables import SCI
from swtdx.devices.debug_port import DEBUG_PORT, DebugPort
from swtdx.devices.fw_cfg import FW_CFG_BASE, FW_CFG_PORTS, FwCfg, FwCfgContents, MadeFile
from swtdx.devices.ioapic import IoApic
from swtdx.devices.part import Backplane, Part, Wires
from swtdx.devices.pci.chipset import HostBridge, LpcBridge
from swtdx.devices.pci.host import CONFIG_BASE, CONFIG_PORTS, ConfigPorts, MemoryWindow, PciHost
from swtdx.devices.power import PowerBlock, ResetControl
from swtdx.devices.rtc import CmosRtc
from swtdx.devices.serial import Uart
from swtdx.devices.timer import StoppedTimer
from swtdx.devices.virtio.console import VirtioConsole
from swtdx.devices.virtio.device import VirtioDevice
from swtdx.devices.virtio.pci import BAR_SIZE, VirtioPci
from swtdx.devices.virtio.ports import PortConfig, VirtioPorts

_LPC_SLOT: Final = 31
#: How long a guest that has suspended itself sleeps, in seconds.
_SLEEP: Final = 1.0


class Power(Part):
    """Power-off, the power management timer, and, with an I/O APIC, what wakes a guest that suspended itself.

    Args:
        ioapic: carries the interrupt of ACPI's events.
    """

    name = "power"

    def __init__(self, ioapic: InterruptController | None = None) -> None:
        self._ioapic = ioapic
        self._block: PowerBlock | None = None
        self._wake: Callable[[], None] = lambda: None
        self._clock: Callable[[], int] = lambda: 0
        self._alarm: threading.Timer | None = None
        #: When it has slept long enough, by the board's clock; None if it was asleep when it was saved.
        self._until: int | None = None

    def plug(self, board: Backplane) -> None:
        """Ports from :data:`swtdx.devices.power.PM_BASE` on."""
        self._block = block = PowerBlock(board.wires.power_off, board.wires.clock, self._interrupt)
        board.ports.register(power.PM_BASE, power.PM_LENGTH, block, name=self.name, widths=(1, 2, 4))
        self._wake, self._clock = board.wires.wake, board.wires.clock
        if self._ioapic is not None:
            self._ioapic.acpi_looked_at = self._fall_asleep

    def _interrupt(self, level: bool) -> None:
        if self._ioapic is not None:
            self._ioapic.acpi_interrupt(level)

    def _fall_asleep(self) -> None:
        if self._block is not None:
            self._block.sleeping = True
            self._sleep_from_now()

    def _sleep_from_now(self) -> None:
        self._until = self._clock() + int(_SLEEP * 1e9)
        self._call_later(_SLEEP)

    def _call_later(self, seconds: float) -> None:
        """Have :meth:`poll` called again.  An alarm that is set rings earlier, and another follows."""
        if self._alarm is None:
            self._alarm = threading.Timer(seconds, self._ring)
            self._alarm.daemon = True
            self._alarm.start()

    def _ring(self) -> None:
        self._alarm = None
        self._wake()

    def poll(self) -> None:
        """Wake the guest, if it has slept long enough; it may have been asleep when it was saved."""
        if self._block is None or not self._block.sleeping:
            return
        if self._until is None:
            self._sleep_from_now()
            return
        left = self._until - self._clock()
        if left > 0:
            self._call_later(left / 1e9)
        else:
            self._block.wake_up()


class PciRoot(Part):
    """Configuration space, the window for BARs, the host bridge, and the reset register among their ports.

    Args:
        window, end: the memory window, ``end`` exclusive.
        ecam: GPA where ECAM answers from the start, inside the window.
        mechanism1: configuration space at ports 0xCF8 and 0xCFC too.
    """

    name = "PCI"

    def __init__(self, window: int, end: int, ecam: int | None = None, *, mechanism1: bool = True) -> None:
        self._window = (window, end)
        self._ecam = ecam
        self._mechanism1 = mechanism1
        self._host: PciHost | None = None

    def plug(self, board: Backplane) -> None:
        """Ports 0xCF8 to 0xCFF, the window, and 00:00.0."""
        ports = ConfigPorts(board.pci, ResetControl(board.wires.restart), mechanism1=self._mechanism1)
        board.ports.register(CONFIG_BASE, CONFIG_PORTS, ports, name="PCI configuration", widths=(1, 2, 4))
        start, end = self._window
        board.mmio.register(start, end - start, MemoryWindow(board.pci, start), name="PCI memory")
        board.pci.add(0, HostBridge(board.pci, self._ecam))
        self._host = board.pci

    def describe(self, tables: AcpiConfig) -> AcpiConfig:
        """The root, with its window but for ECAM, and ECAM of bus 0, where it is now.

        Outside the window, where software may have put it, ECAM does not answer.
        """
        start, end = self._window
        ecam, ecam_end = (0, 0) if self._host is None else self._host.ecam
        if not start <= ecam < ecam_end <= end:
            return replace(tables, memory_windows=((start, end - start),))
        parts = ((start, ecam), (ecam_end, end))
        windows = tuple((low, high - low) for low, high in parts if low < high)
        return replace(tables, memory_windows=windows, ecam=(ecam, ECAM_BUS_BYTES))


class Serial(Part):
    """COM1; ``output`` takes what the guest prints."""

    name = "COM1"

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self.uart = Uart(output)

    def plug(self, board: Backplane) -> None:
        """Its ports."""
        board.ports.register(serial.COM1, serial.PORTS, self.uart, name=self.name)

    def describe(self, tables: AcpiConfig) -> AcpiConfig:
        """A port to be polled: nothing carries its interrupt."""
        return replace(tables, serial_port=serial.COM1)


class Timer(Part):
    """The place of the 8254."""

    name = "8254 timer"

    def plug(self, board: Backplane) -> None:
        """Its ports."""
        board.ports.register(timer.BASE, timer.PORTS, StoppedTimer(), name=self.name)


class Clock(Part):
    """The CMOS clock; ``declared``: the tables offer it to the operating system.

    Args:
        ram: bytes of RAM below and above 4 GiB, for firmware that asks the CMOS.
    """

    name = "RTC"

    def __init__(self, *, declared: bool = False, ram: tuple[int, int] | None = None) -> None:
        self._declared = declared
        self._ram = ram

    def plug(self, board: Backplane) -> None:
        """Its ports."""
        board.ports.register(rtc.RTC_BASE, rtc.RTC_PORTS, CmosRtc(board.wires.now, self._ram), name=self.name)

    def describe(self, tables: AcpiConfig) -> AcpiConfig:
        """A device, if it is declared."""
        return replace(tables, cmos_rtc=True) if self._declared else tables


class Virtio(Part):
    """A virtio device behind PCI.

    Args:
        make: makes the device, with the wires of the board that it is plugged into.
        slot: PCI device number; the next free one by default.
    """

    def __init__(self, make: Callable[[Wires], VirtioDevice], slot: int | None = None) -> None:
        self._make = make
        self._slot = slot
        self._function: VirtioPci | None = None

    def plug(self, board: Backplane) -> None:
        """A function on bus 0, its BAR placed: a kernel without firmware need not do it itself."""
        device = self._make(board.wires)
        self.name = f"virtio device {device.device_id}"
        self._function = VirtioPci(device, board.wires.dma, board.wires.send_msi)
        board.pci.add(board.free_slot() if self._slot is None else self._slot, self._function)
        self._function.place_bar(0, board.place(BAR_SIZE))

    @property
    def failure(self) -> str | None:
        """Why its driver has to reset it."""
        return None if self._function is None else self._function.failure

    def poll(self) -> None:
        """Input to the guest, interrupts that were put off."""
        if self._function is not None:
            self._function.poll()


class Console(Virtio):
    """The virtio console (hvc0).

    Args:
        output, size: those of :class:`VirtioConsole`.
        channels: further ports, each with a name; a console that has some has no size.
    """

    def __init__(
        self,
        output: Callable[[bytes], None],
        size: tuple[int, int] | None = None,
        channels: tuple[PortConfig, ...] = (),
    ) -> None:
        super().__init__(self._console, slot=1)
        self._output = output
        self._size = size
        self._channels = channels
        self.device: VirtioConsole | VirtioPorts | None = None

    def _console(self, wires: Wires) -> VirtioConsole | VirtioPorts:
        if self._channels:
            self.device = VirtioPorts(self._output, self._channels, wake=wires.wake)
        else:
            self.device = VirtioConsole(self._output, size=self._size, wake=wires.wake)
        return self.device


class InterruptController(Part):
    """An I/O APIC for ACPI's interrupt (:mod:`swtdx.devices.ioapic` says what for).

    ``acpi_looked_at`` is called when the guest looks at that input while it is not masked.

    Args:
        first, pins: the number of its first interrupt, and how many it has.
    """

    name = "I/O APIC"

    def __init__(self, first: int = SCI, pins: int = 1) -> None:
        self._first = first
        self._pins = pins
        self._device = IoApic(pins)
        self.acpi_looked_at: Callable[[], None] = lambda: None

    def plug(self, board: Backplane) -> None:
        """At the PC's address."""
        self._device = IoApic(self._pins, board.wires.send_msi, self._looked_at)
        board.mmio.register(IOAPIC_GPA, PAGE, self._device, name=self.name)

    def acpi_interrupt(self, level: bool) -> None:
        """Assert or release the input of ACPI's events."""
        self._device.set_level(SCI - self._first, level)

    def _looked_at(self, pin: int) -> None:
        if pin + self._first == SCI:
            self.acpi_looked_at()

    def describe(self, tables: AcpiConfig) -> AcpiConfig:
        """In the MADT; the FADT then has fixed registers."""
        return replace(tables, ioapic=(IOAPIC_GPA, self._first, self._pins))


class Lpc(Part):
    """The ICH9's LPC bridge, which OVMF looks for."""

    name = "LPC"

    def plug(self, board: Backplane) -> None:
        """Function 00:1f.0."""
        board.pci.add(_LPC_SLOT, LpcBridge())


#: Room for tables to grow between when firmware asks for their size and when it fetches them.
_ACPI_ROOM: Final = 1024


class FirmwareConfig(Part):
    """fw_cfg.

    Args:
        contents: what firmware finds there, beside the board's own ACPI tables.
    """

    name = "fw_cfg"

    def __init__(self, contents: FwCfgContents | None = None) -> None:
        self._contents = FwCfgContents() if contents is None else contents
        self._pci: PciHost | None = None
        self.device: FwCfg | None = None

    def plug(self, board: Backplane) -> None:
        """Its ports."""
        self.device = device = FwCfg(board.wires.dma)
        self._pci = board.pci
        for key, data in self._contents.items.items():
            device.add_item(key, data)
        for name, data in self._contents.files.items():
            device.add_file(name, data)
        board.ports.register(FW_CFG_BASE, FW_CFG_PORTS, device, name=self.name, widths=(1, 2, 4))

    def offer_acpi(self, make: Callable[[], AcpiFiles]) -> None:
        """Let firmware fetch ACPI tables, made anew whenever it does: it may have moved what they tell of."""
        device = self.device
        assert device is not None
        others = self._contents.acpi
        if others is not None:
            for name, data in others(self._ecam()).items():
                device.add_file(name, MadeFile(len(data), functools.partial(self._of_others, name)))
            return
        now = make()

        def size(data: bytes) -> int:
            return -(-(len(data) + _ACPI_ROOM) // PAGE) * PAGE

        device.add_file(RSDP_FILE, MadeFile(len(now.rsdp), lambda: make().rsdp))
        device.add_file(TABLES_FILE, MadeFile(size(now.tables), lambda: make().tables))
        device.add_file(LOADER_FILE, MadeFile(size(now.loader), lambda: make().loader))

    def _ecam(self) -> int:
        """Where ECAM is now; 0 if it is off."""
        return 0 if self._pci is None else self._pci.ecam[0]

    def _of_others(self, name: str) -> bytes:
        assert self._contents.acpi is not None
        return self._contents.acpi(self._ecam())[name]


class DebugConsole(Part):
    """The debug port; ``output`` takes what firmware prints there."""

    name = "debug port"

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output

    def plug(self, board: Backplane) -> None:
        """One port."""
        board.ports.register(DEBUG_PORT, 1, DebugPort(self._output), name=self.name)
