"""Every bit of CR0, CR4, EFER and XCR0 that a TD writes, both ways, by each instruction: what becomes of it.

The guest flips one bit of a register's current value, notes a fault or the value that it reads back, and
writes the old value again.  Expected is what the TDX module's base specification says of these registers in
a TD and, where it leaves them to the processor, Intel SDM volume 3, section 2.5 (control registers), 2.2.1
(EFER) and 2.6 (XCR0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from swtdx.arch.x86 import VECTOR_GP, VECTOR_VE
from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import (
    Clts,
    Cpuid,
    GuestFault,
    MovFromCr,
    MovToCr,
    Rdmsr,
    Script,
    Tdcall,
    Wrmsr,
    Xsetbv,
)
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.boot.small import FAULT_GATES, SmallTd

EFER = 0xC0000080
#: Bits of CR0 that mean nothing.
IGNORED = 0x1FFAFFC0
OSXSAVE = 1 << 18
#: Outcomes: allowed (and what reads back), #GP, #VE.
GP, VE = "#GP", "#VE"
Outcome = str | int
#: CR4 bit: CPUID leaf, register (EAX, EBX, ECX, EDX as 0 to 3) and bit without which it is reserved.
CR4_FEATURE = {
    0: (1, 3, 1), 1: (1, 3, 1), 2: (1, 3, 4), 3: (1, 3, 2), 4: (1, 3, 3), 5: (1, 3, 6), 6: (1, 3, 7),
    7: (1, 3, 13), 9: (1, 3, 24), 10: (1, 3, 25), 11: (7, 2, 2), 12: (7, 2, 16), 16: (7, 1, 0),
    17: (1, 2, 17), 18: (1, 2, 26), 20: (7, 1, 7), 21: (7, 1, 20), 22: (7, 2, 3), 23: (7, 2, 7),
    24: (7, 2, 31), 25: (7, 3, 5),
}  # fmt: skip


@dataclass
class Seen:
    """What a guest found: a register's value at its start, and an outcome for each bit that it flipped."""

    start: dict[str, int]
    flips: dict[str, list[Outcome]]
    cpuid: dict[int, tuple[int, ...]]
    #: LMSW with each of the 16 operands, and CLTS.
    lmsw: list[Outcome]
    clts: Outcome
    #: Register, value written, outcome.
    many: list[tuple[str, int, Outcome]] = field(default_factory=list)


def many(value: int) -> list[int]:
    """``value`` with two bits and with a few bits flipped, in all ways and in 500 random ones."""
    random = Random(1)
    pairs = [value ^ 1 << one ^ 1 << two for one in range(34) for two in range(one)]
    return pairs + [value ^ sum(1 << bit for bit in random.sample(range(33), 4)) for _ in range(500)]


# ------------------------------------------------------------------ the guest in machine code
REGISTERS = ("cr0", "cr4", "efer", "xcr0")
_READ = {
    "cr0": "mov rax, cr0",
    "cr4": "mov rax, cr4",
    "efer": f"mov ecx, {EFER:#x}; rdmsr; shl rdx, 32; or rax, rdx",
    "xcr0": "xor ecx, ecx; xgetbv; shl rdx, 32; or rax, rdx",
}
_WRITE = {
    "cr0": "mov cr0, rax",
    "cr4": "mov cr4, rax",
    "efer": f"mov ecx, {EFER:#x}; mov rdx, rax; shr rdx, 32; wrmsr",
    "xcr0": "xor ecx, ecx; mov rdx, rax; shr rdx, 32; xsetbv",
}
#: An entry is a byte for the outcome and 8 for the value; R13 is where the next one goes.
_NOTE = "mov [r13], bl; mov [r13 + 1], rax; add r13, 9;"
#: A fault goes on where R12 says, with the outcome in BL.
_HANDLERS = """
fault_13:
    mov bl, 'g'
    add rsp, 8
    mov [rsp], r12
    iretq
fault_20:
    mov eax, 3; TDCALL
    mov bl, 'v'
    mov [rsp], r12
    iretq
"""


def _sweep(name: str) -> str:
    return f"""
    {_READ[name]}
    mov rsi, rax
    mov bl, 'n'
    {_NOTE}
    xor ebp, ebp
{name}_next:
    mov rax, rsi
    btc rax, rbp
    mov bl, 'n'
    mov r12d, offset {name}_done
    {_WRITE[name]}
{name}_done:
    {_READ[name]}
    {_NOTE}
    mov rax, rsi
    mov r12d, offset {name}_back
    {_WRITE[name]}
{name}_back:
    inc ebp
    cmp ebp, 64
    jne {name}_next
"""


def _sweep_32(name: str) -> str:
    """The same by 32-bit code, but for CR0.PG: it would leave long mode.  Handlers run in 64-bit code."""
    return f"""
    {_READ[name]}
    mov rsi, rax
    xor ebp, ebp
{name}_next32:
    mov rax, rsi
    btc eax, ebp
    mov bl, 'n'
    mov r12d, offset {name}_done32
    push 8
    mov ecx, offset {name}_in32
    push rcx
    retfq
    .code32
{name}_in32:
    mov {name}, eax
{name}_done32:
    .byte 0xea
    .long {name}_in64
    .word BOOT_CS
    .code64
{name}_in64:
    {_READ[name]}
    {_NOTE}
    mov rax, rsi
    {_WRITE[name]}
    inc ebp
    cmp ebp, 31
    jne {name}_next32
"""


CODE = f"""
    .set idt, data + 0x800
    .set notes, data + 0x1000
    mov edi, offset idt
    {FAULT_GATES}
    mov edi, offset data
    mov word ptr [rdi], 0x14f
    mov eax, offset idt; mov [rdi + 2], rax
    lidt [rdi]
    mov r13d, offset notes
    .irp leaf, 1, 7, 0xd
    mov eax, \\leaf; xor ecx, ecx; cpuid
    mov [r13], eax; mov [r13 + 4], ebx; mov [r13 + 8], ecx; mov [r13 + 12], edx; add r13, 16
    .endr
    {"".join(_sweep(name) for name in ("cr0", "cr4", "efer"))}
    mov rax, cr4; bts rax, 18; mov cr4, rax
    {_sweep("xcr0")}
    mov rax, cr0; mov rsi, rax; xor ebp, ebp
lmsw_next:
    mov bl, 'n'; mov r12d, offset lmsw_done
    lmsw bp
lmsw_done:
    mov rax, cr0
    {_NOTE}
    mov rax, rsi; mov cr0, rax
    inc ebp; cmp ebp, 16; jne lmsw_next
    mov rax, rsi; or eax, 8; mov cr0, rax
    mov bl, 'n'; mov r12d, offset clts_done
    clts
clts_done:
    mov rax, cr0
    {_NOTE}
    mov edi, offset gdt
    movabs rax, 0x00CF9B000000FFFF
    mov [rdi + 8], rax
    {_sweep_32("cr0")}
    {_sweep_32("cr4")}
    mov esi, offset notes
    mov ecx, r13d
    sub ecx, esi
    call put_all
    jmp power_off
    {_HANDLERS}
"""


def _outcome(kind: int, value: int) -> Outcome:
    return {ord("g"): GP, ord("v"): VE}.get(kind, value)


def on_qemu(hypervisor: Hypervisor, **config: Any) -> Seen:
    guest = SmallTd(hypervisor, CODE, **config)
    try:
        result = guest.run()
    finally:
        guest.td.teardown()
    assert result.reason is EndReason.POWER_OFF, result
    sent = bytes(guest.serial)
    cpuid = {leaf: struct.unpack_from("<4I", sent, 16 * place) for place, leaf in enumerate((1, 7, 0xD))}
    notes = [struct.unpack_from("<BQ", sent, at) for at in range(48, len(sent), 9)]
    assert len(notes) == 4 * 65 + 16 + 1 + 2 * 31
    start, flips = {}, {}
    for place, name in enumerate(REGISTERS):
        part = notes[65 * place : 65 * place + 65]
        start[name] = part[0][1]
        flips[name] = [_outcome(*note) for note in part[1:]]
    rest = [_outcome(*note) for note in notes[260:]]
    flips["cr0 32"], flips["cr4 32"] = rest[17:48], rest[48:]
    return Seen(start, flips, cpuid, rest[:16], rest[16])


# ------------------------------------------------------------------ the guest as a script
def on_script(platform: Platform, hypervisor: Hypervisor, **config: Any) -> Seen:
    seen = Seen({}, {}, {}, [], 0)

    def write(name: str, value: int) -> Any:
        """The outcome, or None."""
        try:
            match name:
                case "cr0" | "cr4":
                    yield MovToCr(int(name[2]), value)
                case "efer":
                    yield Wrmsr(EFER, value)
                case "xcr0":
                    yield Xsetbv(value)
        except GuestFault as fault:
            if fault.vector == VECTOR_VE:
                yield Tdcall(rax=3)
            return {VECTOR_GP: GP, VECTOR_VE: VE}[fault.vector]
        return None

    def read(cpu: Script, name: str) -> Any:
        if name == "xcr0":
            return cpu.context.xcr0  # XGETBV never stops, and so is no operation
        return (yield Rdmsr(EFER) if name == "efer" else MovFromCr(int(name[2])))

    def program(cpu: Script) -> Any:
        for leaf in (1, 7, 0xD):
            seen.cpuid[leaf] = tuple((yield Cpuid(leaf)))
        for name in REGISTERS:
            if name == "xcr0":
                yield MovToCr(4, (yield MovFromCr(4)) | OSXSAVE)
            old = yield from read(cpu, name)
            seen.start[name] = old
            outcomes = seen.flips[name] = []
            for bit in range(64):
                fault = yield from write(name, old ^ 1 << bit)
                value = yield from read(cpu, name)
                outcomes.append(fault or value)
                yield from write(name, old)
        for name in ("cr0", "cr4"):
            old = yield from read(cpu, name)
            for value in many(old):
                if name == "cr0" and not value >> 31 and value & IGNORED:
                    continue  # see test_a_guest_can_lose_itself
                fault = yield from write(name, value)
                seen.many.append((name, value, fault or (yield from read(cpu, name))))
                yield from write(name, old)
        old = (yield MovFromCr(0)) | 8
        yield MovToCr(0, old)
        yield Clts()
        seen.clts = yield MovFromCr(0)
        yield Tdcall(rax=0, rcx=0xFC00, r10=0, r11=0x10003, r12=0)

    script = platform.machine.engine.add_program(program)  # type: ignore[attr-defined]
    td = Td.build(hypervisor, TdConfig(**config), [InitialPage(0x100000, b"")], ram=[])
    try:
        io = MachineIo(td, BoardConfig(apic_ids=(0,)), console_out=lambda _: None)
        result = io.runner(hypervisor.processors).run(600)
    finally:
        td.teardown()
    assert script.error is None
    assert result.reason is EndReason.FATAL_ERROR, result
    return seen


# ------------------------------------------------------------------ what should be
def expected_cr0(value: int) -> Outcome:
    """64-bit code: what no processor takes, then what the module keeps, then paging, which has to stay on."""
    protected, paging = value & 1, value >> 31 & 1
    if value >> 32 or not value >> 5 & 1 or (paging and not protected):
        return GP
    if value >> 29 & 3 or not protected:
        return VE  # NW, CD
    if not paging:
        return GP
    return value & 0xE005003F | 0x10


def expected_cr4(value: int, start: int, cpuid: dict[int, tuple[int, ...]]) -> Outcome:
    """Bits without their feature are reserved; MCE, VMXE and SMXE are the module's."""
    for bit in range(64):
        if not value >> bit & 1 or bit in (8, 13, 14):
            continue
        feature = CR4_FEATURE.get(bit)
        if feature is None or not cpuid[feature[0]][feature[1]] >> feature[2] & 1:
            if bit == 18 and feature is not None:
                continue  # OSXSAVE's own feature is shown
            return GP
    if value >> 13 & 3 or not value >> 6 & 1:
        return VE
    if not value >> 5 & 1:
        return GP  # PAE in 64-bit mode
    return value


def expected_efer(value: int, start: int) -> Outcome:
    """SCE is the guest's; writing LMA changes nothing; all else is a #VE."""
    return VE if (value ^ start) & ~0x401 else value & ~0x400 | start & 0x400


def expected_xcr0(value: int, xfam: int) -> Outcome:
    """x87 is always on, AVX needs SSE, and XFAM bounds it."""
    if not value & 1 or value & ~xfam or value & 6 == 4:
        return GP
    return value


@pytest.fixture(scope="module", params=["scripted", pytest.param("qemu", marks=pytest.mark.qemu)])
def host(request: pytest.FixtureRequest) -> Iterator[tuple[Platform, Hypervisor]]:
    machine = MachineConfig(engine=request.param, memory_bytes=512 << 20)
    with Platform.boot(PlatformConfig(machine=machine)) as built:
        yield built, Hypervisor(built.host)


#: XFAM: x87 and SSE; with AVX; with PKRU, too.
XFAMS = (0x3, 0x7, 0x207)


@pytest.fixture(scope="module", params=XFAMS, ids=hex)
def seen(request: pytest.FixtureRequest, host: tuple[Platform, Hypervisor]) -> tuple[Seen, int, str]:
    platform, hypervisor = host
    engine = platform.machine.config.engine
    xfam: int = request.param
    found = on_qemu(hypervisor, xfam=xfam) if engine == "qemu" else on_script(platform, hypervisor, xfam=xfam)
    return found, xfam, engine


def _compare(seen: Seen, name: str, wanted: list[Outcome]) -> None:
    wrong = {
        bit: (got, want)
        for bit, (got, want) in enumerate(zip(seen.flips[name], wanted, strict=True))
        if got != want
    }
    assert wrong == {}, f"{name}: bit: (got, wanted), from {seen.start[name]:#x}"


def test_each_bit_of_cr0(seen: tuple[Seen, int, str]) -> None:
    found, _xfam, engine = seen
    start = found.start["cr0"]
    assert start & 0x80000031 == 0x80000031
    assert not start & 0x60000000
    wanted = [expected_cr0(start ^ 1 << bit) for bit in range(64)]
    _compare(found, "cr0", wanted)
    if engine == "qemu":
        found.start["cr0 32"] = start
        _compare(found, "cr0 32", wanted[:31])


def test_each_bit_of_cr4(seen: tuple[Seen, int, str]) -> None:
    found, _xfam, engine = seen
    start = found.start["cr4"]
    assert start & 0x6060 == 0x60, "MCE and PAE; VMXE reads as 0"
    wanted = [expected_cr4(start ^ 1 << bit, start, found.cpuid) for bit in range(64)]
    _compare(found, "cr4", wanted)
    if engine == "qemu":
        # Its CR4.OSXSAVE was set meanwhile.
        found.start["cr4 32"] = start | OSXSAVE
        wanted = [expected_cr4((start | OSXSAVE) ^ 1 << bit, start, found.cpuid) for bit in range(31)]
        _compare(found, "cr4 32", wanted)


def test_several_bits_at_once(seen: tuple[Seen, int, str]) -> None:
    """Which of several reasons to refuse a value comes first."""
    found, _xfam, engine = seen
    if engine == "qemu":
        pytest.skip("the microcode judges the value, whatever the engine")
    assert len(found.many) > 1900
    for name, value, got in found.many:
        want = expected_cr0(value) if name == "cr0" else expected_cr4(value, 0, found.cpuid)
        assert got == want, (name, hex(value))


def test_each_bit_of_efer(seen: tuple[Seen, int, str]) -> None:
    found, _xfam, _engine = seen
    start = found.start["efer"]
    assert start == 0xD01, "NXE, LMA, LME, SCE"
    _compare(found, "efer", [expected_efer(start ^ 1 << bit, start) for bit in range(64)])


def test_each_bit_of_xcr0(seen: tuple[Seen, int, str]) -> None:
    found, xfam, engine = seen
    assert found.start["xcr0"] == 1
    shown = found.cpuid[0xD][0] | found.cpuid[0xD][3] << 32
    assert shown == xfam
    wanted = [expected_xcr0(1 ^ 1 << bit, xfam) for bit in range(64)]
    if engine == "qemu":
        # It cannot intercept XSETBV: what QEMU has, guests can enable (docs/fidelity.md), but no more.
        for bit, got in enumerate(found.flips["xcr0"]):
            if wanted[bit] == GP and got != GP:
                assert not xfam >> bit & 1
                assert bit in (1, 2, 3, 4, 5, 9)
                wanted[bit] = got
    _compare(found, "xcr0", wanted)


def test_lmsw_and_clts(seen: tuple[Seen, int, str]) -> None:
    found, _xfam, engine = seen
    start = found.start["cr0"]
    if engine == "qemu":  # LMSW is not an operation of scripts
        assert found.lmsw == [start & ~0xE | operand & 0xE for operand in range(16)]
    assert found.clts == start & ~8


# ------------------------------------------------------------------ as the TD starts: 32-bit code, no paging
def in_32_bit_code(host: tuple[Platform, Hypervisor], program: Any) -> None:
    platform, hypervisor = host
    script = platform.machine.engine.add_program(program, bits=32)  # type: ignore[attr-defined]
    td = Td.build(hypervisor, TdConfig(), [InitialPage(0x100000, b"")], ram=[])
    try:
        MachineIo(td, BoardConfig(apic_ids=(0,)), console_out=lambda _: None).runner(
            hypervisor.processors
        ).run(60)
    finally:
        td.teardown()
    script.result()


def _flip_32(number: int, bit: int, outcomes: dict[tuple[int, int], Outcome]) -> Any:
    old = yield MovFromCr(number)
    fault = None
    try:
        yield MovToCr(number, old ^ 1 << bit)
    except GuestFault as raised:
        fault = {VECTOR_GP: GP, VECTOR_VE: VE}[raised.vector]
    outcomes[number, bit] = fault or (yield MovFromCr(number))
    if fault is None:
        yield MovToCr(number, old)


#: #VE, which 32-bit code can take only once: it cannot read VE_INFO.
VE_32 = [(0, 0), (0, 29), (0, 30), (4, 6), (4, 13), (4, 14)]


def test_the_initial_registers_and_their_bits(host: tuple[Platform, Hypervisor]) -> None:
    """The module says 0x21, 0x40 and 0x901; CR0.ET is always set (SDM volume 3, 27.3.2.1).

    Paging cannot be turned on with LME but without PAE.
    """
    if host[0].machine.config.engine == "qemu":
        pytest.skip("tests/machine/test_unpaged.py and test_cr4.py have QEMU's")
    starts: list[int] = []
    outcomes: dict[tuple[int, int], Outcome] = {}
    cpuid: dict[int, tuple[int, ...]] = {}

    def program(cpu: Script) -> Any:
        starts.extend([(yield MovFromCr(0)), (yield MovFromCr(4)), (yield Rdmsr(EFER)), cpu.context.xcr0])
        for leaf in (1, 7):
            cpuid[leaf] = tuple((yield Cpuid(leaf)))
        for number in (0, 4):
            for bit in range(32):
                if (number, bit) not in VE_32:
                    yield from _flip_32(number, bit, outcomes)

    in_32_bit_code(host, program)
    assert starts == [0x31, 0x40, 0x901, 1]
    for (number, bit), got in outcomes.items():
        value = starts[0 if number == 0 else 1] ^ 1 << bit
        if number == 4:
            # PAE is not on yet, and may be; PCIDE and LA57 it does not have.
            want = expected_cr4(value | 0x20, 0, cpuid)
            want = want if want in (GP, VE) else value
        else:
            want = GP if bit in (5, 31) else value & 0xE005003F | 0x10
        assert got == want, (number, bit)


@pytest.mark.parametrize(("number", "bit"), VE_32)
def test_what_the_module_keeps_is_a_ve_in_32_bit_code(
    host: tuple[Platform, Hypervisor], number: int, bit: int
) -> None:
    if host[0].machine.config.engine == "qemu":
        pytest.skip("32-bit code of a TD cannot read VE_INFO")
    outcomes: dict[tuple[int, int], Outcome] = {}

    def program(_cpu: Script) -> Any:
        yield from _flip_32(number, bit, outcomes)

    in_32_bit_code(host, program)
    assert outcomes == {(number, bit): VE}


def test_a_guest_can_lose_itself(host: tuple[Platform, Hypervisor]) -> None:
    """CR0.PG cleared together with a bit that means nothing: the write exits for that bit, the module stores
    the value, and the next VM entry fails, because a guest in 64-bit mode has paging."""
    if host[0].machine.config.engine == "qemu":
        pytest.skip("the microcode judges the value, whatever the engine")
    platform, hypervisor = host

    def program(_cpu: Script) -> Any:
        cr0 = yield MovFromCr(0)
        yield MovToCr(0, cr0 & ~(1 << 31) | 1 << 6)

    platform.machine.engine.add_program(program)  # type: ignore[attr-defined]
    td = Td.build(hypervisor, TdConfig(), [InitialPage(0x100000, b"")], ram=[])
    try:
        io = MachineIo(td, BoardConfig(apic_ids=(0,)), console_out=lambda _: None)
        result = io.runner(hypervisor.processors).run(60)
    finally:
        td.teardown()
    assert "NON_RECOVERABLE_TD after: entry failure guest state" in result.detail
