"""KVM itself on the machine: Linux with TDX host support runs a TD by KVM's own interface.

The kernel is that of ``swtdx host prepare``, which takes minutes to build: it is taken from the user's cache,
or built where SWTDX_BUILD_HOST names a release of the distribution for its source ("sid").
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from swtdx.guests.cache import Cache
from swtdx.guests.guest import Guest
from swtdx.host.kernel import HostKernel, cached_kernel, prepare_kernel
from tests.assembler import assemble
from tests.boot.process import swtdx

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.slow, pytest.mark.network]

BASE, SIZE = 0xFFFF0000, 0x10000
#: Page tables, then code that comes to 64-bit mode and says two words by TDVMCALL<Instruction.IO>.
_TD = f"""
        .org 0x1000
        .quad {BASE} + 0x2003
        .org 0x2000
        .quad 0, 0, 0, {BASE} + 0x3003
        .org 0x3000 + 511 * 8
        .quad 0xFFE000E3
        .org 0x4000
        .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtp:   .word 23
        .long {BASE} + 0x4000
        .org 0x5000
start:  lgdt [gdtp]
        mov eax, cr4
        or eax, 0x620
        mov cr4, eax
        mov eax, {BASE} + 0x1000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000001
        mov cr0, eax
        .byte 0xEA
        .long long
        .word 8
        .code64
long:   lea rbx, [rip + words]
1:      movzx r15d, byte ptr [rbx]
        inc rbx
        mov r14d, 0x3F8
        test r15d, r15d
        jnz 2f
        mov r14d, 0x501
2:      xor r10d, r10d
        mov r11d, 30
        mov r12d, 1
        mov r13d, 1
        xor eax, eax
        mov ecx, 0xFC00
        .byte 0x66, 0x0F, 0x01, 0xCC            # TDCALL
        jmp 1b
words:  .asciz "a TD under KVM"
        .code32
        .org 0xFFF0
        jmp start
        .org 0x10000
"""


@pytest.fixture(scope="module")
def kernel(guest: Guest) -> HostKernel:
    """A kernel for a host; the guest's busybox is for its initramfs."""
    users = Cache(Path(os.environ.get("SWTDX_HOST_CACHE", Path.home() / ".cache" / "swtdx")))
    found = cached_kernel() or cached_kernel(users)
    suite = os.environ.get("SWTDX_BUILD_HOST")
    if found is None and suite:
        found = prepare_kernel(suite)
    if found is None:
        pytest.skip("no kernel for a host: run `swtdx host prepare`, or set SWTDX_BUILD_HOST=sid")
    return found


@pytest.mark.parametrize("processors", ["1", "2"])
def test_a_td_by_kvms_own_interface(kernel: HostKernel, tmp_path: Path, processors: str) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    client, image = tmp_path / "client", tmp_path / "image"
    source = Path(__file__).with_name("kvm_client.c")
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-o", client, source], check=True)
    image.write_bytes(assemble(_TD, 32, BASE))
    modules = [f"insmod /root/{name}.ko {parameters}" for name, parameters in (
        ("irqbypass", ""), ("kvm", ""), ("kvm-intel", "tdx=1"))]  # fmt: skip
    command = "; ".join([*modules, "./client image", "echo end $?", "dmesg"])
    files = [str(kernel.entry.path(f"{name}.ko")) for name in ("irqbypass", "kvm", "kvm-intel")]
    words = [word for file in (*files, str(client), str(image)) for word in ("--add", file)]
    done = swtdx(
        "host", "--kernel", str(kernel.image), "--cpus", processors, "--memory", "1G", "--timeout", "180",
        *words, "--exec", command,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "end 0" in lines, (done.stderr, lines[-30:])
    found = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines[: lines.index("end 0")]}
    assert found["said"] == "a TD under KVM"
    assert found["ended"] == "2 at-port 501"
    assert found["sept-ve-disable"] == "1"
    invalid = {
        "unknown-command", "finalize-too-early", "init-wrong-attributes", "init-wrong-xfam", "init-twice",
        "strange-attributes", "region-outside", "add-too-late",
    }  # fmt: skip
    assert {name: found[name] for name in invalid} == dict.fromkeys(invalid, "-22")
    assert found["capabilities-too-small"] == "-7"
    # An ordinary virtual machine can be made, and ends with an error that says so: KVM_EXIT_FAIL_ENTRY, 7.
    assert found["plain-exit"] == "9 7"
    log = done.stdout
    assert "virt/tdx: TDX-Module initialized" in log
    assert not [line for line in lines if "WARNING" in line or "BUG:" in line or "Oops" in line]
