"""With real kernels from the system's package sources: fetched, read, started by the shim, booted."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from unicorn import x86_const as x

from swtdx.guests.direct_boot import build_direct_boot
from swtdx.guests.errors import FetchError
from swtdx.guests.exec_channels import ControlStream
from swtdx.guests.exec_protocol import ExecStream
from swtdx.guests.fetch import available_kernels, fetch_guest
from swtdx.guests.guest import Guest
from swtdx.guests.initramfs import Exec
from swtdx.guests.memory_map import ACPI_GPA
from swtdx.guests.tdx_support import Answer, tdx_support
from tests.fetching import cannot_fetch
from tests.guests.td_model import GPAW, SHARED_BIT, TdModel

pytestmark = pytest.mark.network


class NoTables:
    tables = ((ACPI_GPA, bytes(36)),)
    rsdp_gpa = ACPI_GPA


@pytest.fixture(scope="module")
def guests() -> list[Guest]:
    """Two kernel versions, from the user's cache if they are there."""
    try:
        versions = [release for release in available_kernels() if "6.12." in release][:2]
        return [fetch_guest(version) for version in versions]
    except FetchError as error:
        cannot_fetch(str(error))


def test_real_kernels_are_understood(guests: list[Guest]) -> None:
    assert len({guest.version for guest in guests}) == 2
    for guest in guests:
        kernel = guest.kernel_image()
        assert kernel.release == guest.version
        assert kernel.pref_address == 0x1000000
        # The configuration is the distribution's word; without it, the kernel itself must say the same.
        assert guest.config is not None
        assert "CONFIG_INTEL_TDX_GUEST=y" in guest.config.read_text().splitlines()
        assert tdx_support(kernel).answer is Answer.YES
        assert [module.name for module in guest.load_modules()][-1] == "tdx_guest"


def test_the_shim_starts_a_real_kernel(guests: list[Guest]) -> None:
    guest = guests[0]
    initrd = guest.initramfs(Exec("true"))
    plan = build_direct_boot(guest.kernel_image(), initrd, "quiet", 256 << 20, 48, NoTables())
    td = TdModel(plan.pages)
    for blob in plan.shared:
        td.share(blob.gpa & ~(1 << 47) & ~SHARED_BIT, blob.data)
    td.start(plan.kernel_entry)
    assert td.gpaw == GPAW
    assert td.register(x.UC_X86_REG_RIP) == plan.kernel_entry
    # RTMR1 is what anyone gets from the kernel's file alone.
    digest = hashlib.sha384(guest.kernel.read_bytes()).digest()
    assert td.rtmrs[1] == hashlib.sha384(bytes(48) + digest).digest()
    assert tuple(td.rtmrs) == plan.rtmrs


@pytest.mark.boot
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
@pytest.mark.parametrize("index", [0, 1])
def test_the_initramfs_runs_a_command_in_a_plain_vm(guests: list[Guest], index: int, tmp_path: Path) -> None:
    """No TD yet: QEMU's own loader, so that only kernel, initramfs and protocol are tried here."""
    guest = guests[index]
    # stderr, bytes that a terminal would change, much output, something left running, a status, and a
    # last line of which every byte must arrive.
    command = (
        "uname -r; printf 'a\\nb\\r\\n\\000\\377'; echo err >&2; seq 20000; "
        "(sleep 99 &) ; tail -c 3 /proc/$$/cmdline | xxd -p; exit 42 \n\n"
    )
    job = Exec(command)
    (tmp_path / "initrd").write_bytes(guest.initramfs(job))
    console = tmp_path / "console"
    _plain_vm(
        guest,
        tmp_path / "initrd",
        "-chardev",
        f"file,id=c,path={console}",
        "-device",
        "virtconsole,chardev=c",
    )
    stream = ExecStream(job.marker_token)
    output = stream.feed(console.read_bytes()) + stream.finish()
    # The end of the command line of the shell: its two newlines and the NUL after them.
    assert output == guest.version.encode() + b"\na\nb\r\n\0\xfferr\n" + NUMBERS + b"0a0a00\n"
    assert stream.status == 42
    assert b"tdx_guest.ko" in stream.log, "this is no TD, and init says so"


@pytest.mark.boot
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
@pytest.mark.parametrize("index", [0, 1])
def test_the_channels_of_a_command_on_qemus_own_ports(
    guests: list[Guest], index: int, tmp_path: Path
) -> None:
    """QEMU's virtio console instead of ours: what the guest's end does is right for any host."""
    guest = guests[index]
    command = (
        "cat; printf 'a\\r\\n\\000\\377'; echo err >/dev/stderr; seq 20000; (sleep 99; echo late) & "
        "echo end >/dev/stdout; exit 43"
    )
    job = Exec(command, get=("/proc/version", "/nope", "/bin/busybox"))
    (tmp_path / "initrd").write_bytes(guest.initramfs(job))
    arguments = ["-chardev", f"file,id=c,path={tmp_path}/console", "-device", "virtconsole,chardev=c"]
    for name in ("out", "err", "ctl"):
        arguments += ["-chardev", f"file,id={name},path={tmp_path}/{name}"]
        arguments += ["-device", f"virtserialport,chardev={name},name=swtdx.{name}"]
    _plain_vm(guest, tmp_path / "initrd", *arguments, cmdline="console=ttyS0 quiet panic=-1")
    got: dict[int, bytes] = {}
    control = ControlStream(3, lambda number, data: got.update({number: got.get(number, b"") + data}))
    control.feed((tmp_path / "ctl").read_bytes())
    assert (tmp_path / "out").read_bytes() == b"a\r\n\0\xff" + NUMBERS + b"end\n"
    assert (tmp_path / "err").read_bytes() == b"err\n"
    assert control.status == 43
    assert got[0].startswith(b"Linux version " + guest.version.encode())
    assert got[2] == guest.busybox.read_bytes()
    assert list(control.missing) == [1]


NUMBERS = b"".join(b"%d\n" % number for number in range(1, 20001))


def _plain_vm(guest: Guest, initrd: Path, *more: str, cmdline: str = "console=hvc0 quiet panic=-1") -> None:
    """Run a guest that is no TD to its end."""
    subprocess.run(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults",
            "-display", "none", "-no-reboot", "-kernel", str(guest.kernel),
            "-initrd", str(initrd), "-append", cmdline, "-device", "virtio-serial-pci", *more,
        ],
        timeout=120,
        check=True,
    )  # fmt: skip
