"""A real kernel on QEMU's own devices, but with our ACPI tables: does Linux believe them?

The kernel is told of our tables by ``acpi_rsdp=``.  QEMU has a UART and PCI at the same places as our
board, so that what the tables say is also true there.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from swtdx.devices.acpi import AcpiConfig, build_acpi
from swtdx.devices.power import (
    POWER_OFF_VALUE,
    RESET_PORT,
    RESET_VALUE,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
)
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import default_guest
from tests.fetching import cannot_fetch

TABLES = 0x800_0000
_QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [
    pytest.mark.boot,
    pytest.mark.qemu,
    pytest.mark.network,
    pytest.mark.skipif(_QEMU is None, reason="qemu-system-x86_64 is not installed"),
]


@pytest.fixture(scope="module")
def kernel() -> Path:
    """The kernel that ``swtdx run`` boots."""
    try:
        return (default_guest() or fetch_guest()).kernel
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


def powering_off() -> bytes:
    """An initramfs whose /init is a program of one system call: reboot(2), power off."""
    code = b"".join(
        bytes((opcode,)) + struct.pack("<I", value)
        for opcode, value in ((0xB8, 169), (0xBF, 0xFEE1DEAD), (0xBE, 672274793), (0xBA, 0x4321FEDC))
    )
    code += b"\x0f\x05\xf4"  # syscall; hlt
    base, size = 0x40_0000, 64 + 56 + len(code)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code
    archive = b""
    for name, mode, data in (("init", 0o100755, elf), ("TRAILER!!!", 0, b"")):
        raw = name.encode() + b"\0"
        fields = (1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields) + raw
        archive += header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)
    return archive


def boot(kernel: Path, tmp_path: Path, config: AcpiConfig, machine: list[str]) -> str:
    """Boot with the tables of ``config`` until /init asks to power off; the kernel's log."""
    assert _QEMU is not None
    (tmp_path / "acpi").write_bytes(build_acpi(config, TABLES).image())
    (tmp_path / "initrd").write_bytes(powering_off())
    log = tmp_path / "log"
    # The clock's rate is given because a busy host makes QEMU's 8254 useless for measuring it.  On a
    # hardware-reduced platform Linux restarts through EFI, which is not there, unless told otherwise.
    command_line = "console=ttyS0 panic=-1 reboot=acpi tsc_early_khz=2000000"
    command_line += f" acpi_rsdp={TABLES:#x} memmap=64K#{TABLES:#x}"
    subprocess.run(
        [
            _QEMU, "-accel", "tcg", "-cpu", "max", "-m", "512M", "-nodefaults", "-display", "none", *machine,
            "-no-reboot",
            "-chardev", f"file,id=log,path={log}", "-device", "isa-serial,chardev=log",
            "-device", "virtio-serial-pci,disable-legacy=on,iommu_platform=on",
            "-chardev", "null,id=hvc", "-device", "virtconsole,chardev=hvc",
            "-device", f"loader,file={tmp_path / 'acpi'},addr={TABLES:#x},force-raw=on",
            "-kernel", str(kernel), "-initrd", str(tmp_path / "initrd"), "-append", command_line,
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    return log.read_text(errors="replace")


def check_common(log: str) -> None:
    complaints = re.findall(r".*(?:ACPI (?:BIOS )?(?:Error|Warning|Exception)|Firmware Bug|FW_BUG).*", log)
    assert not complaints
    assert "ACPI: 1 ACPI AML tables successfully acquired and loaded" in log
    assert "No IOAPIC entries present" in log
    assert "ACPI: PM: (supports S0 S5)" in log
    assert "PCI Root Bridge [PCI0] (domain 0000 [bus 00])" in log
    assert re.search(r"ttyS0 at I/O 0x3f8 \(irq = 0, .*16550A", log)
    assert "i8042: PNP: No PS/2 controller found" in log
    assert re.search(r"\[1af4:1043\]", log)


def test_linux_accepts_the_tables(kernel: Path, tmp_path: Path) -> None:
    log = boot(kernel, tmp_path, AcpiConfig(), ["-machine", "q35,hpet=off,smm=off,usb=off"])
    check_common(log)
    assert "root bus resource [mem 0xc0000000-0xfebfffff window]" in log
    assert "PCI: Using configuration type 1 for base access" in log


def test_linux_powers_off_restarts_and_uses_ecam(kernel: Path, tmp_path: Path) -> None:
    """QEMU's microvm has nothing at our ACPI ports, so that we can listen there, and no 0xCF8 either."""
    machine = ["-machine", "microvm,pcie=on,acpi=on,pit=off,pic=off,rtc=on,auto-kernel-cmdline=off"]
    heard = {}
    for port in (SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, RESET_PORT):
        heard[port] = tmp_path / f"{port:x}"
        machine += ["-chardev", f"file,id=p{port:x},path={heard[port]}"]
        machine += ["-device", f"isa-debugcon,iobase={port:#x},chardev=p{port:x}"]
    config = AcpiConfig(ecam=(0xE000_0000, 1 << 20), memory_windows=((0xC000_0000, 0x2000_0000),))
    log = boot(kernel, tmp_path, config, machine)
    check_common(log)
    assert "ECAM [mem 0xe0000000-0xe00fffff]" in log
    assert "Using configuration type 1" not in log
    assert heard[SLEEP_STATUS_PORT].read_bytes() == b"\x80", "the wake status is cleared first"
    assert heard[SLEEP_CONTROL_PORT].read_bytes() == bytes((POWER_OFF_VALUE,))
    # Nothing happened, so /init ends, Linux panics and restarts the machine.
    assert heard[RESET_PORT].read_bytes()[:1] == bytes((RESET_VALUE,))
