"""The PCI host: configuration mechanism 1, ECAM, and the memory window behind which BARs decode.

One bus.  An access to a function that is not there costs two dictionary look-ups, because an
operating system makes hundreds of them.

Sources: PCI Local Bus Specification 3.0, 3.2.2.3.2 (mechanism 1); PCI Express Base Specification,
7.2.2 (ECAM: bus in bits 27:20, device and function in 19:12, register in 11:0).
"""

from __future__ import annotations

from typing import Final

from swtdx.devices.bus import ALL_ONES, BusDevice, BusError
from swtdx.devices.pci.function import PciFunction
from swtdx.devices.power import ResetControl
from swtdx.devices.saved import In, Out, Stateless

CONFIG_BASE: Final = 0xCF8
CONFIG_PORTS: Final = 8
_ENABLE: Final = 1 << 31
_RESET_OFFSET: Final = 1
_DATA_OFFSET: Final = 4


def devfn(device: int, function: int = 0) -> int:
    """The number under which a device (0..31) and function (0..7) are addressed on their bus."""
    if not (0 <= device < 32 and 0 <= function < 8):
        raise BusError(f"there is no PCI device {device} function {function}")
    return device << 3 | function


class PciHost:
    """Bus 0 and its functions."""

    def __init__(self) -> None:
        self._functions: dict[int, PciFunction] = {}
        self._ranges: list[tuple[int, int, BusDevice]] = []
        self._ecam = (0, 0)

    @property
    def functions(self) -> dict[int, PciFunction]:
        """A copy of the map from devfn to function."""
        return dict(self._functions)

    def add(self, device: int, function: PciFunction, number: int = 0) -> None:
        """Plug ``function`` in as device ``device``, function ``number``, of bus 0.

        Raises:
            BusError: the place is taken or does not exist.
        """
        at = devfn(device, number)
        if at in self._functions:
            raise BusError(f"PCI 00:{device:02x}.{number} is taken")
        self._functions[at] = function
        function.on_remap = self._remap
        self._remap()

    def _remap(self) -> None:
        self._ranges = [entry for function in self._functions.values() for entry in function.decoded()]

    @property
    def ecam(self) -> tuple[int, int]:
        """Where ECAM answers: GPAs from, to (exclusive); equal while it is off."""
        return self._ecam

    def set_ecam(self, base: int, length: int) -> None:
        """Answer configuration accesses at GPA ``[base, base + length)``; a length of 0 turns it off."""
        self._ecam = (base, base + length)

    def find(self, address: int) -> tuple[int, int, BusDevice] | None:
        """The range that decodes GPA ``address`` now; the first function wins where two do."""
        for entry in self._ranges:
            if entry[0] <= address < entry[1]:
                return entry
        return None

    # Configuration space by bus address (bus << 8 | devfn)

    def config_read(self, where: int, register: int, size: int) -> int:
        """Read configuration space; all ones if the function is absent.  ``register`` is 0..4095."""
        function = self._functions.get(where)
        if function is None:
            return ALL_ONES[size]
        # No function has extended capabilities: beyond 256 bytes an empty list, all zeros.
        return function.read_config(register, size) if register + size <= 256 else 0

    def config_write(self, where: int, register: int, size: int, value: int) -> None:
        """Write configuration space; dropped if the function is absent."""
        function = self._functions.get(where)
        if function is not None and register + size <= 256:
            function.write_config(register, size, value)

    def ecam_offset(self, address: int) -> int | None:
        """Where in the ECAM ``address`` is, or None."""
        start, end = self._ecam
        return address - start if start <= address < end else None


class ConfigPorts:
    """Ports 0xCF8..0xCFF: CONFIG_ADDRESS, CONFIG_DATA, and the reset control register at 0xCF9.

    CONFIG_ADDRESS answers 32-bit accesses only; a byte at 0xCF9 is the reset control.

    Args:
        mechanism1: False leaves only the reset control, for a host with nothing but ECAM.
    """

    def __init__(self, host: PciHost, reset_control: ResetControl, *, mechanism1: bool = True) -> None:
        self._host = host
        self._reset_control = reset_control
        self._mechanism1 = mechanism1
        self._address = 0

    def save_state(self, out: Out) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        out.u32(self._address)
        self._reset_control.save_state(out)

    def load_state(self, section: In) -> None:
        """See :class:`swtdx.devices.saved.Saved`."""
        self._address = section.u32()
        self._reset_control.load_state(section)

    def read(self, offset: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes from port 0xCF8 + ``offset``."""
        if offset >= _DATA_OFFSET:
            address = self._address
            if not address & _ENABLE:
                return ALL_ONES[size]
            register = (address & 0xFC) + offset - _DATA_OFFSET
            return self._host.config_read(address >> 8 & 0xFFFF, register, size)
        if offset == 0 and size == 4 and self._mechanism1:
            return self._address
        if offset == _RESET_OFFSET and size == 1:
            return self._reset_control.read()
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes to port 0xCF8 + ``offset``."""
        if offset >= _DATA_OFFSET:
            address = self._address
            if address & _ENABLE:
                register = (address & 0xFC) + offset - _DATA_OFFSET
                self._host.config_write(address >> 8 & 0xFFFF, register, size, value)
        elif offset == 0 and size == 4 and self._mechanism1:
            self._address = value & 0x80FF_FFFC
        elif offset == _RESET_OFFSET and size == 1:
            self._reset_control.write(value)


class MemoryWindow(Stateless):
    """The range of guest-physical addresses below 4 GiB that belongs to PCI: ECAM and BARs.

    One claim of the MMIO space, so that a guest may program any BAR it likes without two claims ever
    meeting.
    """

    def __init__(self, host: PciHost, base: int) -> None:
        self._host = host
        self._base = base

    def read(self, offset: int, size: int) -> int:
        """Read 1, 2, 4 or 8 bytes."""
        address = self._base + offset
        entry = self._host.find(address)
        if entry is not None and address + size <= entry[1]:
            return entry[2].read(address - entry[0], size)
        at = self._host.ecam_offset(address)
        if at is not None and size <= 4:
            return self._host.config_read(at >> 12, at & 0xFFF, size)
        return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes."""
        address = self._base + offset
        entry = self._host.find(address)
        if entry is not None and address + size <= entry[1]:
            entry[2].write(address - entry[0], size, value)
            return
        at = self._host.ecam_offset(address)
        if at is not None and size <= 4:
            self._host.config_write(at >> 12, at & 0xFFF, size, value)
