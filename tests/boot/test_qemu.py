"""TDs that `swtdx qemu` starts by a command line of QEMU's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import time
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from swtdx.guests import cpio
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.firmware import fetch_firmware
from swtdx.guests.guest import Guest
from tests.boot.process import SWTDX
from tests.fetching import cannot_fetch

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network, pytest.mark.slow]

INIT = b"""#!/bin/sh
export PATH=/bin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys
echo "=== ready"
while read -r line; do eval "$line"; done
"""
OWNER = bytes(range(48))


def initrd(guest: Guest) -> bytes:
    """A shell on the console, whatever that is."""
    entries = [cpio.directory(name) for name in ("bin", "dev", "proc", "sys", "lib")]
    entries += [
        cpio.regular("bin/busybox", guest.busybox.read_bytes(), 0o755),
        cpio.symlink("bin/sh", "busybox"),
        cpio.regular("init", INIT, 0o755),
        cpio.character_device("dev/console", 5, 1),
    ]
    return cpio.archive(entries)


def test_a_line_with_a_serial_console_and_qmp(guest: Guest, tmp_path: Path) -> None:
    """Commands go in by the serial port's socket; QMP sees the TD run, restart, and ends it."""
    try:
        image = fetch_firmware("trixie").image
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))
    (tmp_path / "initrd").write_bytes(initrd(guest))
    disk = bytes(range(256)) * 256
    (tmp_path / "disk").write_bytes(disk)
    tdx = {"qom-type": "tdx-guest", "id": "tdx0", "mrowner": base64.b64encode(OWNER).decode()}
    qmp, serial, pid = (tmp_path / name for name in ("qmp", "serial", "pid"))
    line = [
        "qemu-system-x86_64", "-machine", "q35,kernel_irqchip=split,confidential-guest-support=tdx0,hpet=off",
        "-object", json.dumps(tdx), "-accel", "kvm", "-cpu", "host", "-m", "512M", "-smp", "2",
        "-bios", str(image), "-kernel", str(guest.kernel), "-initrd", str(tmp_path / "initrd"),
        "-append", "console=ttyS0 quiet", "-nodefaults", "-nographic",
        "-chardev", f"socket,id=s,path={serial},server=on,wait=off", "-serial", "chardev:s",
        "-blockdev", json.dumps({"driver": "file", "filename": str(tmp_path / "disk"), "node-name": "f"}),
        "-blockdev", "driver=raw,node-name=d,file=f,read-only=on",
        "-device", "virtio-blk-pci,drive=d,serial=abc,bootindex=1,addr=0x7",
        "-smbios", "type=11,value=from,,the line", "-qmp", f"unix:{qmp},server=on,wait=off",
        "-pidfile", str(pid), "-fw_cfg", "name=opt/org.example/x,string=hello",
    ]  # fmt: skip
    with subprocess.Popen(
        [*SWTDX, "qemu", "--timeout", "200", *line], stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            asyncio.run(asyncio.wait_for(_talk(run, qmp, serial, pid), 180))
            status = run.wait(60)
        finally:
            run.kill()
        assert run.stderr is not None
        said = run.stderr.read()
    assert status == 0, said
    assert "the guest restarts: it is a new TD now" in said
    assert not qmp.exists()
    assert not pid.exists()
    assert (tmp_path / "disk").read_bytes() == disk


async def _talk(run: subprocess.Popen[str], qmp: Path, serial: Path, pid: Path) -> None:
    until = time.monotonic() + 60
    while not (qmp.exists() and serial.exists()) and time.monotonic() < until:
        assert run.poll() is None
        await asyncio.sleep(0.1)
    client = QMPClient("test")
    await client.connect(str(qmp))
    assert int(pid.read_text()) == run.pid
    reader, writer = await asyncio.open_unix_connection(str(serial))

    async def until_word(word: str) -> str:
        seen = b""
        while word.encode() not in seen:
            seen += await asyncio.wait_for(reader.read(4096), 120)
            assert seen
        return seen.decode("utf-8", "replace")

    await until_word("=== ready")
    assert (await client.execute("query-status"))["status"] == "running"  # type: ignore[index]
    # The strings of SMBIOS, the item of fw_cfg by ACPI's or the board's port, the vCPUs.
    writer.write(b"nproc; strings /sys/firmware/dmi/tables/DMI | grep from; echo '=== e''nd'\n")
    seen = await until_word("=== end")
    assert "\n2\r" in seen
    assert "from,the line" in seen
    with client.listener("RESET") as events:
        writer.write(b"reboot -f\n")
        await asyncio.wait_for(events.get(), 60)
    await until_word("=== ready")
    writer.close()
    await client.execute("quit")
    # The other end has gone.
    with contextlib.suppress(EOFError):
        await client.disconnect()
