"""vCPUs with real code that move between logical processors, and TDs side by side: nothing is lost, nothing
leaks from one into the other."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.result import EndReason
from tests.boot.held import at_once
from tests.boot.small import RAM, SmallTd

pytestmark = pytest.mark.qemu

#: MSRs that a guest may write without an exit and that belong to the vCPU, and what SEED makes of them.
MSRS = {
    0xC0000081: "STAR",
    0xC0000082: "LSTAR",
    0xC0000084: "SFMASK",
    0xC0000100: "FS_BASE",
    0xC0000101: "GS_BASE",
    0xC0000102: "KERNEL_GS_BASE",
    0xC0000103: "TSC_AUX",
    0x174: "SYSENTER_CS",
    0x175: "SYSENTER_ESP",
    0x176: "SYSENTER_EIP",
    0x277: "PAT",
}
DUMP_BYTES = 1024 + 8 * (len(MSRS) + 10)
#: Fills the vCPU with values of SEED's, dumps everything, says M (the host may move it), and dumps again.
CODE = """
    mov rax, cr4; or eax, 1 << 18; mov cr4, rax
    xor ecx, ecx; mov eax, 7; xor edx, edx; xsetbv
    mov r8, SEED
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    lea rax, [r8 + \\n * 0x101]; movq xmm\\n, rax; vpbroadcastq ymm\\n, xmm\\n
    .endr
    fninit; mov [rsp - 64], r8; fild qword ptr [rsp - 64]; fldpi; fldl2e
    mov dword ptr [rsp - 64], 0x3f80; ldmxcsr [rsp - 64]; mov word ptr [rsp - 64], 0x0f7f; fldcw [rsp - 64]
    lea rax, [r8 + 0x1000]; mov dr0, rax
    lea rax, [r8 + 0x2000]; mov dr1, rax
    lea rax, [r8 + 0x3000]; mov dr2, rax
    lea rax, [r8 + 0x4000]; mov dr3, rax
    mov eax, 0xffff4ff1; mov dr6, rax
    lea rax, [r8 + 0x5000]; mov cr2, rax
    mov eax, 5; mov cr8, rax
    WRITES
    mov edi, offset data; call dump
    mov al, 'M'; call put
    mov edi, offset data + 4096; call dump
    mov esi, offset data; mov ecx, SIZE; call put_all
    mov esi, offset data + 4096; mov ecx, SIZE; call put_all
    jmp power_off
dump:
    mov eax, 7; xor edx, edx; xsave [rdi]; lea rbx, [rdi + 1024]
    .irp reg, dr0, dr1, dr2, dr3, dr6, dr7, cr0, cr2, cr4, cr8
    mov rax, \\reg; mov [rbx], rax; add rbx, 8
    .endr
    READS
    ret
"""
SEEDS = (0x1234567, 0x7654322)


def value_of(msr: int, seed: int) -> int:
    """What the guest writes there: PAT holds memory types, SYSENTER_CS a selector, the others addresses."""
    if msr == 0x277:
        return 0x0007040600070406 ^ (seed & 2) << 16
    return seed + (msr & 0xFFF) & (0xFFFF if msr == 0x174 else 0xFFFFFFFF)


def source(seed: int) -> str:
    writes = "".join(
        f"mov ecx, {msr:#x}; mov eax, {value & 0xFFFFFFFF}; mov edx, {value >> 32}; wrmsr;"
        for msr, value in ((msr, value_of(msr, seed)) for msr in MSRS)
    )
    reads = "".join(
        f"mov ecx, {msr:#x}; rdmsr; mov [rbx], eax; mov [rbx + 4], edx; add rbx, 8;" for msr in MSRS
    )
    return (
        CODE.replace("WRITES", writes)
        .replace("READS", reads)
        .replace("SIZE", str(DUMP_BYTES))
        .replace("SEED", str(seed))
    )


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    config = MachineConfig(memory_bytes=512 << 20, processors_per_package=2)
    with Platform.boot(PlatformConfig(machine=config)) as platform:
        yield Hypervisor(platform.host)


class Travelling:
    """A TD that stops at M."""

    def __init__(self, hypervisor: Hypervisor, seed: int, cpu: int) -> None:
        self.seed = seed
        self.guest = SmallTd(hypervisor, source(seed), [hypervisor.processors[cpu]], heard=self.heard)

    def heard(self, data: bytes) -> None:
        if data == b"M" and bytes(self.guest.serial) == b"M":
            self.guest.runner.stop(EndReason.TIMEOUT, "M")

    def to_the_stop(self) -> None:
        result = self.guest.run()
        assert (result.reason, bytes(self.guest.serial)) == (EndReason.TIMEOUT, b"M"), result

    def to_the_end(self) -> tuple[bytes, bytes]:
        result = self.guest.run()
        assert result.reason is EndReason.POWER_OFF, result
        dumps = bytes(self.guest.serial[1:])
        assert len(dumps) == 2 * DUMP_BYTES
        return dumps[:DUMP_BYTES], dumps[DUMP_BYTES:]

    def check(self, dump: bytes) -> None:
        seed = self.seed
        for n in range(16):
            expected = seed + n * 0x101
            assert struct.unpack_from("<2Q", dump, 160 + 16 * n) == (expected,) * 2, f"xmm{n}"
            assert struct.unpack_from("<2Q", dump, 576 + 16 * n) == (expected,) * 2, f"upper half of ymm{n}"
        assert struct.unpack_from("<H", dump, 0) == (0x0F7F,), "FCW"
        assert struct.unpack_from("<I", dump, 24) == (0x3F80,), "MXCSR"
        # ST(2) is the seed as an 80-bit number: a mantissa with its first bit set, exponent 16383 + 24.
        mantissa, exponent = struct.unpack_from("<QH", dump, 32 + 2 * 16)
        assert exponent == 16383 + seed.bit_length() - 1
        assert mantissa >> 64 - seed.bit_length() == seed
        values = struct.unpack_from(f"<{10 + len(MSRS)}Q", dump, 1024)
        assert values[:4] == tuple(seed + n * 0x1000 for n in range(1, 5)), "DR0..3"
        assert values[4] == 0xFFFF4FF1, "DR6"
        assert values[7] == seed + 0x5000, "CR2"
        assert values[8] & 1 << 18, "CR4.OSXSAVE"
        assert values[9] == 5, "CR8"
        for (msr, name), value in zip(MSRS.items(), values[10:], strict=True):
            assert value == value_of(msr, seed), name


def test_a_vcpu_that_moves_keeps_everything(hypervisor: Hypervisor) -> None:
    """To where another TD's vCPU has just been, and back after it."""
    first, second = (Travelling(hypervisor, seed, cpu) for cpu, seed in enumerate(SEEDS))
    first.to_the_stop()
    second.to_the_stop()
    flushes = hypervisor.stats.get("TDH.VP.FLUSH", 0)
    first.guest.move([hypervisor.processors[1]])
    second.guest.move([hypervisor.processors[0]])
    assert hypervisor.stats["TDH.VP.FLUSH"] == flushes + 2
    for travelling in (first, second):
        before, after = travelling.to_the_end()
        travelling.check(before)
        travelling.check(after)
        # All of it, also what was not set: but for XSAVE's header, which says what is in use.
        assert before == after
        travelling.guest.td.teardown()
    assert hypervisor.allocator.used == 0


def test_two_tds_on_one_processor_in_turn(hypervisor: Hypervisor) -> None:
    """Each is entered where the other was a moment ago."""
    first, second = (Travelling(hypervisor, seed, 0) for seed in SEEDS)
    first.to_the_stop()
    second.to_the_stop()
    for travelling in (first, second):
        for dump in travelling.to_the_end():
            travelling.check(dump)
        travelling.guest.td.teardown()


def test_two_tds_at_the_same_time(hypervisor: Hypervisor) -> None:
    """On a processor each, both running: many exits, and each talks to its own devices."""
    code = "mov ebp, 1500; again: mov al, 'NAME'; call put; mov eax, 0; cpuid; dec ebp; jnz again"
    guests = [
        SmallTd(hypervisor, code.replace("NAME", name), [cpu])
        for name, cpu in zip("ab", hypervisor.processors, strict=True)
    ]
    results = at_once(*(guest.run for guest in guests))
    assert [result.reason for result in results] == [EndReason.POWER_OFF] * 2
    assert [bytes(guest.serial) for guest in guests] == [b"a" * 1500, b"b" * 1500]
    for guest in guests:
        guest.td.teardown()
    assert hypervisor.allocator.used == 0


#: Writes a pattern that changes with each round over 4 MiB, and checks it; says . for a round, B if wrong.
PATTERN = f"""
    .irp at, 0, 1
    mov ecx, {RAM} + 1 + \\at * {2 << 20}; mov eax, TDG_MEM_PAGE_ACCEPT; TDCALL; test rax, rax; jnz bad
    .endr
    mov al, '+'; call put
    xor ebp, ebp
round:
    inc rbp
    mov edi, {RAM}; mov rax, rbp; mov ecx, {4 << 17}
1:  mov [rdi], rax; add rax, 0x10001; add rdi, 8; dec ecx; jnz 1b
    mov edi, {RAM}; mov rax, rbp; mov ecx, {4 << 17}
2:  cmp [rdi], rax; jne bad; add rax, 0x10001; add rdi, 8; dec ecx; jnz 2b
    mov al, '.'; call put
    jmp round
bad: mov al, 'B'; call put; jmp power_off
"""


def test_a_td_is_not_disturbed_while_others_come_and_go(hypervisor: Hypervisor) -> None:
    """Every teardown flushes the caches of the package, under the feet of the TD that runs."""
    one, other = hypervisor.processors
    guest = SmallTd(hypervisor, PATTERN, [one])
    rounds = []

    def visitors() -> None:
        try:
            while not guest.serial:
                time.sleep(0.01)
            for _ in range(25):
                before = len(guest.serial)
                visitor = SmallTd(hypervisor, "mov al, 'v'; call put", [other])
                assert visitor.run().reason is EndReason.POWER_OFF
                visitor.td.teardown()
                rounds.append(len(guest.serial) - before)
        finally:
            guest.runner.stop(EndReason.STOPPED, "enough")

    result, _ = at_once(lambda: guest.run(200), visitors)
    assert result.reason is EndReason.STOPPED, result
    assert guest.serial[:1] == b"+"
    assert set(guest.serial[1:]) == {ord(".")}
    assert len(rounds) == 25
    guest.td.teardown()
    assert hypervisor.allocator.used == 0
