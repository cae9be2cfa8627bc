"""Two machines behind one face: our board, and QEMU under its qtest protocol.

The drivers in this directory run on either.  What QEMU's devices accept and answer is the yardstick
for ours, and for the drivers themselves.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from swtdx.devices.board import Board, BoardConfig, build_board
from swtdx.devices.dma import BufferDma, DmaError, Segment, T
from swtdx.devices.virtio.ports import PortConfig

RAM_SIZE = 8 << 20


class Machine(Protocol):
    """What a driver needs: ports, MMIO, memory, and the console's far end."""

    #: PCI device number of the virtio console.
    console_slot: int

    def inp(self, port: int, size: int) -> int: ...
    def outp(self, port: int, size: int, value: int) -> None: ...
    def mmio_read(self, address: int, size: int) -> int: ...
    def mmio_write(self, address: int, size: int, value: int) -> None: ...
    def mem_read(self, gpa: int, length: int) -> bytes: ...
    def mem_write(self, gpa: int, data: bytes) -> None: ...

    def console_input(self, data: bytes) -> None:
        """Type ``data`` at the virtio console."""
        ...

    def console_output(self, length: int) -> bytes:
        """The next ``length`` bytes that the guest printed."""
        ...


class SharedMemory(BufferDma):
    """Guest memory of which a part is private: DMA to it fails as in a TD."""

    def __init__(self, buffer: bytearray) -> None:
        super().__init__(buffer)
        self.private: tuple[int, int] = (0, 0)

    def _refuse(self, gpa: int, length: int) -> None:
        if gpa < self.private[1] and self.private[0] < gpa + length:
            raise DmaError(gpa, length)

    def read(self, gpa: int, length: int) -> bytes:
        self._refuse(gpa, length)
        return super().read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        self._refuse(gpa, len(data))
        super().write(gpa, data)

    def transfer(self, segments: Iterable[Segment], move: Callable[[list[memoryview]], T]) -> T:
        pieces = list(segments)
        for piece in pieces:
            self._refuse(*piece)
        return super().transfer(pieces, move)


class BoardMachine:
    """Our board with some RAM.  An MSI whose address is RAM is a write there, as on a PCI bus."""

    console_slot = 1

    def __init__(self, config: BoardConfig | None = None, channels: Sequence[PortConfig] = ()) -> None:
        self.ram = bytearray(RAM_SIZE)
        self.dma = SharedMemory(self.ram)
        self.printed = bytearray()
        self.serial_printed = bytearray()
        self.msis: list[tuple[int, int]] = []
        self.power: list[str] = []
        self.wakes = 0
        self.nanoseconds = 0
        self.seconds = 0.0
        self.accesses = 0
        self._config = replace(config or BoardConfig(), channels=tuple(channels))
        self.board = self.new_board()

    def new_board(self) -> Board:
        """Another board of the same parts, on the same wires."""
        return build_board(
            self._config,
            self.dma,
            self._msi,
            console_out=self.printed.extend,
            serial_out=self.serial_printed.extend,
            power_off=lambda: self.power.append("off"),
            restart=lambda: self.power.append("restart"),
            wake=self._wake,
            clock=lambda: self.nanoseconds,
            now=lambda: self.seconds,
        )

    def _msi(self, address: int, data: int) -> None:
        self.msis.append((address, data))
        if address < RAM_SIZE:
            self.ram[address : address + 4] = data.to_bytes(4, "little")

    def _wake(self) -> None:
        self.wakes += 1

    def inp(self, port: int, size: int) -> int:
        self.accesses += 1
        return self.board.ports.read(port, size)

    def outp(self, port: int, size: int, value: int) -> None:
        self.accesses += 1
        self.board.ports.write(port, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        self.accesses += 1
        return self.board.mmio.read(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.accesses += 1
        self.board.mmio.write(address, size, value)

    def mem_read(self, gpa: int, length: int) -> bytes:
        return bytes(self.ram[gpa : gpa + length])

    def mem_write(self, gpa: int, data: bytes) -> None:
        self.ram[gpa : gpa + len(data)] = data

    def console_input(self, data: bytes) -> None:
        assert self.board.console is not None
        self.board.console.send(data)
        self.board.poll()

    def console_output(self, length: int) -> bytes:
        taken = bytes(self.printed[:length])
        del self.printed[:length]
        return taken


class QtestMachine:
    """QEMU's Q35 with a UART, a virtio console and a processor that has halted.

    Args:
        more: further arguments for QEMU.
        frozen: stop the machine's clock and processor; timers then never fire.
        descriptors: file descriptors that ``more`` names.
    """

    console_slot = 1

    def __init__(self, *more: str, frozen: bool = False, descriptors: Sequence[int] = ()) -> None:
        self._near, far = socket.socketpair()
        self._near.settimeout(10)
        bios = os.memfd_create("halt")
        os.write(bios, b"\xf4" * 0x1_0000)  # HLT with interrupts off, for ever
        arguments = [
            shutil.which("qemu-system-x86_64") or "",
            "-accel", "tcg", "-qtest", "stdio", "-qtest-log", "none",
            "-bios", f"/proc/self/fd/{bios}", *(["-S"] if frozen else []),
            "-machine", "q35,hpet=off,usb=off", "-m", f"{RAM_SIZE >> 20}M",
            "-rtc", "base=2024-02-29T23:59:30,clock=vm",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-chardev", "null,id=uart", "-device", "isa-serial,chardev=uart",
            "-chardev", f"socket,id=console,fd={far.fileno()}",
            "-device", "virtio-serial-pci,id=vs,addr=1,disable-legacy=on,iommu_platform=on",
            "-device", "virtconsole,chardev=console,nr=0",
            *more,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[far.fileno(), bios, *descriptors],
            text=True,
        )
        os.close(bios)
        far.close()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._near.close()

    def command(self, line: str) -> str:
        """Send one qtest command; its result, without the leading ``OK``."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        while True:
            answer = process.stdout.readline()
            assert answer, f"QEMU ended at {line!r}"
            if not answer.startswith("IRQ"):
                assert answer.startswith("OK"), f"{line!r}: {answer}"
                return answer[2:].strip()

    def inp(self, port: int, size: int) -> int:
        return int(self.command(f"in{'_bw_l'[size]} {port:#x}"), 16)

    def outp(self, port: int, size: int, value: int) -> None:
        self.command(f"out{'_bw_l'[size]} {port:#x} {value:#x}")

    def mmio_read(self, address: int, size: int) -> int:
        return int(self.command(f"read{'_bw_l___q'[size]} {address:#x}"), 16)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.command(f"write{'_bw_l___q'[size]} {address:#x} {value:#x}")

    def mem_read(self, gpa: int, length: int) -> bytes:
        return bytes.fromhex(self.command(f"read {gpa:#x} {length:#x}")[2:])

    def mem_write(self, gpa: int, data: bytes) -> None:
        self.command(f"write {gpa:#x} {len(data):#x} 0x{data.hex()}")

    def console_input(self, data: bytes) -> None:
        self._near.sendall(data)

    def console_output(self, length: int) -> bytes:
        taken = b""
        while len(taken) < length:
            taken += self._near.recv(length - len(taken))
        return taken
