"""Every TDVMCALL by the GHCI, right and wrong, and wild ones: the answer is a status or an orderly end."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from swtdx.arch import ghci
from swtdx.vmm.result import EndReason
from swtdx.vmm.td_params import TdConfig
from swtdx.vmm.tdvmcall import Action
from tests.vmm.fake_guest import walk_shared
from tests.vmm.support import POWER_OFF, R8, R9, R10, R11, R12, R13, R14, R15, RAM, RBX, RDI, RDX, RSI, Setup

# R10, by ghci.md section 1.
SUCCESS, RETRY = 0, 1
INVALID, INUSE, ALIGN, UNSUPPORTED = (1 << 63 | code for code in range(4))
STATUSES = {SUCCESS, RETRY, INVALID, INUSE, ALIGN, UNSUPPORTED}
SHARED = 1 << 47
MIB, PAGE = 1 << 20, 4096
Guest = Generator[tuple[Any, ...], Any, None]


class Caller:
    """Calls the server of a TD without a guest, as the run loop does."""

    def __init__(self, setup: Setup | None = None, vcpu: int = 0) -> None:
        self.setup = setup or Setup()
        self.vcpu = self.setup.td.vcpus[vcpu]
        self.action: Action | None = None

    def __call__(self, function: int, *args: int, **registers: int) -> int:
        """The call's R10; the registers are then in ``regs``."""
        numbers = {"rdx": RDX, "rbx": RBX, "rsi": RSI, "rdi": RDI, "r8": R8, "r9": R9, "r10": R10, "r15": R15}
        cpu = self.setup.hypervisor.processors[0]
        g = cpu.gpr
        g[:] = [0] * 16
        g[0], g[1], g[R11] = 77, registers.pop("mask", 0xFFCC), function
        for register, value in enumerate(args, R12):
            g[register] = value
        for name, value in registers.items():
            g[numbers[name]] = value
        before = g[:]
        server = self.setup.io.server
        service = server.unknown if g[R10] else server.services.get(g[R11], server.unknown)
        self.action = service.serve(self.vcpu, g)
        self.regs = g[:]
        # What is no output keeps what the guest passed.
        changed = {n for n in range(2, 16) if g[n] != before[n]}
        assert changed <= {R10, R11, R12, R13, R14, R15}
        return g[R10]

    def hpa(self, gpa: int) -> int | str:
        """Where the processor finds a shared GPA."""
        root = self.setup.td.shared.root
        return walk_shared(self.setup.machine.memory.read_u64, root, gpa, 4)


@pytest.fixture
def ask() -> Caller:
    return Caller()


# ------------------------------------------------------------------ the table
def test_the_table_is_what_is_served(ask: Caller) -> None:
    server = ask.setup.io.server
    assert set(server.services) == {number for number, call in ghci.CALLS.items() if call.supported}
    for number, call in ghci.CALLS.items():
        if not call.supported:
            assert ask(number) == UNSUPPORTED, call.name


def test_numbers_of_linux_and_edk2() -> None:
    """asm/shared/tdx.h, IndustryStandard/Tdx.h; instructions by the SDM's exit reasons."""
    assert (ghci.GET_TD_VMCALL_INFO, ghci.MAP_GPA, ghci.GET_QUOTE) == (0x10000, 0x10001, 0x10002)
    assert (ghci.REPORT_FATAL_ERROR, ghci.SETUP_EVENT_NOTIFY_INTERRUPT) == (0x10003, 0x10004)
    numbers = (ghci.CPUID, ghci.HLT, ghci.IO, ghci.RDMSR, ghci.WRMSR, ghci.MMIO, ghci.WBINVD, ghci.PCONFIG)
    assert numbers == (10, 12, 30, 31, 32, 48, 54, 65)
    assert set(ghci.STATUS_NAMES) == STATUSES
    assert ghci.status_name(INVALID) == "INVALID_OPERAND"
    assert ghci.status_name(7) == "0x7"
    assert ghci.CALLS_BY_NAME["mapgpa"].number == 0x10001
    # TDX_HYPERCALL's masks in Linux: R10..R15; and with RBX, RDI, RSI, R8, R9, RDX.
    assert sum(1 << n for n in range(10, 16)) == ghci.BASIC_MASK
    assert ghci.BASIC_MASK | sum(1 << n for n in (RBX, RDI, RSI, R8, R9, RDX)) == ghci.FULL_MASK
    assert not ghci.FULL_MASK & ghci.NEVER_PASSED


@pytest.mark.parametrize("function", [0, 1, 11, 28, 36, 39, 0xFFFF, 0x10006, 0x10007, 1 << 63, 2**64 - 1])
def test_unknown_sub_functions(ask: Caller, function: int) -> None:
    assert ask(function) == UNSUPPORTED
    assert ask.action is None


@pytest.mark.parametrize("r10", [1, 5, 10, 2**64 - 1])
def test_other_interfaces(ask: Caller, r10: int) -> None:
    """R10 != 0 is a KVM hypercall: -KVM_ENOSYS."""
    assert ask(ghci.MAP_GPA, SHARED, PAGE, r10=r10) == 2**64 - 1000


def test_get_info(ask: Caller) -> None:
    assert ask(0x10000, 0) == SUCCESS
    assert ask.regs[R11:R15] == [0, 0, 0, 0]
    assert ask(0x10000, 1) == SUCCESS
    assert ask.regs[R11:R15] == [0b11, 0, 0, 0]
    for leaf in (2, 1 << 32, 2**64 - 1):
        assert ask(0x10000, leaf) == INVALID


# ------------------------------------------------------------------ instructions
@pytest.mark.parametrize(
    "operands",
    [
        (0, 0, 0x3F8),
        (3, 0, 0x3F8),
        (8, 0, 0x3F8),
        (1, 2, 0x3F8),
        (1, 0, 0x10000),
        (4, 1, 0xFFFE),
        (1 << 32 | 1, 0, 0),
    ],
)
def test_io_refused(ask: Caller, operands: tuple[int, ...]) -> None:
    assert ask(30, *operands) == INVALID


def test_io(ask: Caller) -> None:
    assert ask(30, 1, 0, 0x1234) == SUCCESS
    assert ask.regs[R11] == 0xFF  # nobody there
    assert ask(30, 4, 0, 0x1234) == SUCCESS
    assert ask.regs[R11] == 0xFFFFFFFF
    assert ask(30, 1, 0, 0x3FD) == SUCCESS
    assert ask.regs[R11] & 0x60 == 0x60  # a 16550's LSR: the transmitter is empty
    for byte in b"swtdx":
        assert ask(30, 1, 1, 0x3F8, r15=0xDEADBEEF00 | byte) == SUCCESS
    assert ask.setup.printed == b"swtdx"


@pytest.mark.parametrize(
    "operands",
    [
        (3, 0, SHARED | 0xC0000000),
        (16, 0, SHARED | 0xC0000000),
        (4, 2, SHARED | 0xC0000000),
        (4, 0, 0xC0000000),  # private
        (4, 0, SHARED << 1),  # wider than the GPAs of this TD
        (4, 0, 2**64 - 1),
        (4, 0, SHARED | PAGE - 2),  # shared memory, over the end of the page
    ],
)
def test_mmio_refused(ask: Caller, operands: tuple[int, ...]) -> None:
    ask.setup.td.shared.map(0, PAGE)
    assert ask(48, *operands) == INVALID


def test_mmio(ask: Caller) -> None:
    for size in (1, 2, 4, 8):
        assert ask(48, size, 0, SHARED | 0xD0000000) == SUCCESS
        assert ask.regs[R11] == (1 << 8 * size) - 1  # nobody there
        assert ask(48, size, 1, SHARED | 0xD0000000, r15=5) == SUCCESS
        assert ask(48, size, 0, SHARED | (SHARED - 1)) == SUCCESS


def test_mmio_to_shared_memory_is_memory(ask: Caller) -> None:
    assert ask(ghci.MAP_GPA, SHARED | 0x10000, PAGE) == SUCCESS
    assert ask(48, 4, 1, SHARED | 0x10010, r15=0x1122334455667788) == SUCCESS
    hpa = ask.hpa(0x10010)
    assert isinstance(hpa, int)
    assert ask.setup.machine.memory.read(hpa, 8) == struct.pack("<Q", 0x55667788)
    assert ask(48, 2, 0, SHARED | 0x10010) == SUCCESS
    assert ask.regs[R11] == 0x7788


def test_cpuid(ask: Caller) -> None:
    assert ask(10, 0x40000000) == SUCCESS
    assert ask.regs[R12] >= 0x40000000
    assert struct.pack("<3I", *ask.regs[R13:]) == b"KVMKVMKVM\0\0\0"
    assert ask(10, 0x80000006) == SUCCESS
    assert ask.regs[R12:] == [0, 0, 4096 << 16 | 7 << 12 | 64, 0]  # the processor's L2 cache
    # Linux asks for nothing else; a leaf that is not ours is all zeros, the upper halves do not count.
    assert ask(10, 0x12345678 << 32 | 0x7FFFFFFF, 2**64 - 1) == SUCCESS
    assert ask.regs[R12:] == [0, 0, 0, 0]


@pytest.mark.parametrize(("vcpus", "index"), [(1, 0), (2, 1), (5, 4), (16, 3)])
def test_cpuid_topology(vcpus: int, index: int) -> None:
    """Leaf 0x1F as the SDM has it: shifts that number cores apart, ended by an empty level."""
    ask = Caller(Setup(config=TdConfig(vcpus=vcpus)), index)
    levels = []
    for subleaf in range(5):
        assert ask(10, 0x1F, subleaf) == SUCCESS
        eax, ebx, ecx, edx = ask.regs[R12:]
        assert ecx & 0xFF == subleaf
        assert edx == index
        if not ecx >> 8 & 0xFF:
            assert (eax, ebx) == (0, 0)
            break
        levels.append((ecx >> 8, eax & 31, ebx))
    kinds, shifts, counts = zip(*levels, strict=True)
    assert kinds == (1, 2)  # SMT, core
    assert shifts[0] == 0
    assert 1 << shifts[-1] >= vcpus > (1 << shifts[-1]) // 2
    assert counts == (1, vcpus)


def test_hlt_and_wbinvd(ask: Caller) -> None:
    assert ask(12, 0) == SUCCESS
    assert ask.action is Action.HALT
    assert ask(54, 0) == SUCCESS
    assert ask(54, 1) == SUCCESS
    assert ask(54, 2) == INVALID


@pytest.mark.parametrize("msr", [0x808, 0x10, 0x174, 0xC0000080, 0x4B564D00, 1 << 32 | 0x1B, 2**64 - 1])
def test_msrs_that_nobody_has(ask: Caller, msr: int) -> None:
    assert ask(31, msr) == INVALID
    assert ask(32, msr, 0) == INVALID


def test_msrs_of_the_start_of_linux(ask: Caller) -> None:
    """What Linux reads or writes when it boots, and what a bare KVM answers."""
    assert ask(31, 0x1B) == SUCCESS
    assert ask.regs[R11] == 0xFEE00D00  # IA32_APIC_BASE: x2APIC, enabled, BSP
    assert ask(32, 0x1B, 0xFEE00D00) == SUCCESS
    assert ask(32, 0x1B, 0xFEE00900) == INVALID  # no way back to xAPIC
    assert ask(31, 0xFE) == SUCCESS
    assert ask.regs[R11] == 0  # IA32_MTRRCAP: none
    assert ask(32, 0xFE, 0) == INVALID
    assert ask(31, 0x2FF) == SUCCESS
    assert ask.regs[R11] & 0xFF == 6  # the default type is write-back
    assert ask(31, 0x179) == SUCCESS
    assert ask.regs[R11] & 0xFF == 0  # IA32_MCG_CAP: no banks
    assert ask(31, 0x3A) == SUCCESS
    assert ask.regs[R11] == 1  # IA32_FEATURE_CONTROL: locked
    assert ask(31, 0x8B) == SUCCESS
    assert ask(32, 0x8B, 0) == SUCCESS  # the microcode revision is read after a write of 0
    assert ask(32, 0x277, 0x0407050600070106) == SUCCESS
    assert ask(31, 0x277) == SUCCESS
    assert ask.regs[R11] == 0x0407050600070106


def test_second_vcpu_is_no_bsp() -> None:
    ask = Caller(Setup(config=TdConfig(vcpus=2)), 1)
    assert ask(31, 0x1B) == SUCCESS
    assert ask.regs[R11] == 0xFEE00C00
    assert ask(31, 0x802) == SUCCESS
    assert ask.regs[R11] == 1


def test_timer_by_msr(ask: Caller) -> None:
    for msr, value in ((0x80F, 0x1FF), (0x832, 2 << 17 | 0xEC), (0x6E0, 2**64 - 1)):
        assert ask(32, msr, value) == SUCCESS
    assert ask(31, 0x6E0) == SUCCESS
    assert ask.regs[R11] == 2**64 - 1
    # Far in the future, not in the past.
    clock = ask.setup.td.clock
    assert ask.vcpu.apic.deadline is not None
    assert ask.vcpu.apic.deadline > clock.now() + (1 << 60)


# ------------------------------------------------------------------ MapGPA
@pytest.mark.parametrize(
    ("start", "size", "status"),
    [
        (SHARED, 0, INVALID),
        (SHARED, 1, ALIGN),
        (SHARED | 1, PAGE, ALIGN),
        (SHARED | 0x800, 0x800, ALIGN),
        (SHARED - PAGE, 2 * PAGE, INVALID),  # straddles the two halves
        (2 * SHARED - PAGE, 2 * PAGE, INVALID),  # beyond the GPA width
        (2 * SHARED, PAGE, INVALID),
        (2**64 - PAGE, PAGE, INVALID),
        (2**64 - PAGE, 2 * PAGE, INVALID),  # wraps
        (SHARED, 2**64 - 1, INVALID),
        (0, SHARED, INVALID),  # most of it is no RAM: cannot become private
        (0xC0000000, PAGE, INVALID),
    ],
)
def test_map_gpa_refused(ask: Caller, start: int, size: int, status: int) -> None:
    calls = len(ask.setup.module.log)
    assert ask(ghci.MAP_GPA, start, size) == status
    assert ask.regs[R11] == start
    assert len(ask.setup.module.log) == calls


def convert(ask: Caller, start: int, size: int) -> int:
    """MapGPA as Linux repeats it; how many calls it took."""
    end, calls = start + size, 0
    while start < end:
        status = ask(ghci.MAP_GPA, start, end - start)
        calls += 1
        if status == SUCCESS:
            return calls
        assert status == RETRY
        assert start < ask.regs[R11] < end, "no progress, or outside the range"
        start = ask.regs[R11]
    raise AssertionError


def test_there_and_back(ask: Caller) -> None:
    td = ask.setup.td
    td.private.augment_range(td.cpu, 0, 8 * MIB)
    assert set(td.private.large) == {0, 2 * MIB, 4 * MIB, 6 * MIB}
    # A range that cuts two large pages and takes one whole.
    assert convert(ask, SHARED | 3 * MIB, 4 * MIB) == 1
    hpas = [ask.hpa(gpa) for gpa in range(3 * MIB, 7 * MIB, PAGE)]
    assert all(isinstance(hpa, int) for hpa in hpas)
    assert len(set(hpas)) == 1024
    assert ask.hpa(3 * MIB - PAGE) == ask.hpa(7 * MIB) == "exit"
    assert not any(3 * MIB <= gpa < 7 * MIB for gpa in td.private.small)
    assert set(td.private.large) == {0}
    assert convert(ask, 3 * MIB, 4 * MIB) == 1
    assert all(ask.hpa(gpa) == "exit" for gpa in range(3 * MIB, 7 * MIB, PAGE))
    assert 4 * MIB in td.private.large
    assert {gpa for gpa in td.private.small if gpa < 8 * MIB} == {
        gpa for gpa in range(2 * MIB, 8 * MIB, PAGE) if not 4 * MIB <= gpa < 6 * MIB
    }
    td.teardown()
    assert ask.setup.hypervisor.allocator.used == 0


def test_a_long_range_is_done_in_pieces() -> None:
    ask = Caller(Setup(ram=[(0, 64 * MIB)]))
    td = ask.setup.td
    td.private.augment_range(td.cpu, 0, 64 * MIB)
    td.private.demote(td.cpu, sorted(td.private.large))
    assert convert(ask, SHARED, 64 * MIB) >= 16
    assert not [gpa for gpa in td.private.small if gpa < 64 * MIB]
    assert td.shared.mapped_bytes == 64 * MIB


def test_ranges_that_are_only_partly_ram() -> None:
    """Two pieces of RAM with a device between them: what is RAM is converted."""
    ask = Caller(Setup(ram=[(0, 4 * MIB), (4 * MIB, 6 * MIB), (8 * MIB, 10 * MIB)]))
    td = ask.setup.td
    td.private.augment_range(td.cpu, 0, 6 * MIB)
    td.private.augment_range(td.cpu, 8 * MIB, 10 * MIB)
    assert convert(ask, SHARED | 2 * MIB, 7 * MIB) <= 4
    assert set(td.private.large) == {0}
    assert isinstance(ask.hpa(4 * MIB), int)
    assert isinstance(ask.hpa(9 * MIB - PAGE), int)
    assert ask.hpa(6 * MIB) == "exit"
    assert {gpa for gpa in td.private.small if gpa < 16 * MIB} == set(range(9 * MIB, 10 * MIB, PAGE))
    # Touching pieces of RAM are one.
    assert convert(ask, 2 * MIB, 4 * MIB) >= 1
    assert set(td.private.large) == {0, 2 * MIB, 4 * MIB}
    assert ask(ghci.MAP_GPA, 5 * MIB, 2 * MIB) == INVALID


def test_a_device_is_shared_as_it_is(ask: Caller) -> None:
    assert ask(ghci.MAP_GPA, SHARED | 0xC0000000, 1 << 40) == SUCCESS
    assert ask.setup.td.shared.mapped_bytes == 0


def test_map_gpa_of_everything(ask: Caller) -> None:
    """The whole shared half, at once."""
    assert convert(ask, SHARED, SHARED) < 100
    assert ask.setup.td.shared.mapped_bytes == RAM[0][1]


# ------------------------------------------------------------------ services
@pytest.mark.parametrize("vector", [0, 31, 256, 1 << 32 | 33, 2**64 - 1])
def test_event_notify_refused(ask: Caller, vector: int) -> None:
    assert ask(ghci.SETUP_EVENT_NOTIFY_INTERRUPT, vector) == INVALID


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (0x10000, PAGE, INVALID),  # private
        (2 * SHARED | 0x10000, PAGE, INVALID),
        (SHARED | 0x10000, SHARED, INVALID),
        (SHARED | 0x10001, PAGE, ALIGN),
        (SHARED | 0x10000, PAGE + 1, ALIGN),
        (SHARED | 0x10000, 0, INVALID),
        (SHARED | 0x20000, PAGE, INVALID),  # not mapped
        (SHARED | 0x10000, 132 << 10, INVALID),
        (SHARED | 0x10000, PAGE, SUCCESS),
    ],
)
def test_get_quote_operands(ask: Caller, gpa: int, size: int, status: int) -> None:
    ask.setup.td.shared.map(0x10000, PAGE)
    ask.setup.io.dma.write(0x10000, struct.pack("<QQII", 1, 0, 16, 0))
    assert ask(ghci.GET_QUOTE, gpa, size) == status


def test_the_vcpu_that_set_it_up_hears_of_the_quote() -> None:
    """QEMU keeps one vector for the TD, of the vCPU that asked for it; any vCPU may ask for the quote."""
    setup = Setup(config=TdConfig(vcpus=2), quote_service=lambda report: report[::-1])
    setup.td.shared.map(0x10000, PAGE)
    setup.io.dma.write(0x10000, struct.pack("<QQII4s", 1, 0, 4, 0, b"abcd"))
    assert Caller(setup, 1)(ghci.SETUP_EVENT_NOTIFY_INTERRUPT, 0x71) == SUCCESS
    assert Caller(setup, 0)(ghci.GET_QUOTE, SHARED | 0x10000, PAGE) == SUCCESS
    while not setup.td.vcpus[1].has_interrupt:
        setup.io.poll()
    assert not setup.td.vcpus[0].has_interrupt
    assert setup.io.dma.read(0x10000, 28) == struct.pack("<QQII4s", 1, 0, 4, 4, b"dcba")


# ------------------------------------------------------------------ fatal errors
def message(text: bytes) -> dict[str, int]:
    """Where Linux's tdx_panic and TDVF put the text."""
    words = struct.unpack("<8Q", text.ljust(64, b"\0"))
    return dict(zip(("r14", "r15", "rbx", "rdi", "rsi", "r8", "r9", "rdx"), words, strict=True))


def fatal(ask: Caller, code: int, text: bytes, gpa: int = 0, mask: int = 0xFFCC) -> str:
    registers = message(text)
    r14 = registers.pop("r14")
    ask(ghci.REPORT_FATAL_ERROR, code, gpa, r14, mask=mask, **registers)
    assert ask.action is Action.END
    outcome = ask.setup.io.control.outcome
    assert outcome is not None
    assert outcome[0] is EndReason.FATAL_ERROR
    return outcome[1]


def test_linux_panics(ask: Caller) -> None:
    text = b"TD misconfiguration: SEPT_VE_DISABLE attribute must be set."
    assert fatal(ask, 0, text) == f"vCPU 0: {text.decode()}"


def test_a_message_of_64_bytes_has_no_end(ask: Caller) -> None:
    assert fatal(ask, 0, b"x" * 64) == "vCPU 0: " + "x" * 64


def test_error_code_and_no_message(ask: Caller) -> None:
    assert fatal(ask, 0x80000, b"") == "vCPU 0: error code 0x80000"


def test_nothing_at_all(ask: Caller) -> None:
    assert fatal(ask, 0, b"") == "vCPU 0: no message"


def test_only_registers_that_are_passed(ask: Caller) -> None:
    assert fatal(ask, 0, b"12345678abcdefghNOT PART OF IT", mask=0xFC00) == "vCPU 0: 12345678abcdefgh"


def test_a_terminal_is_not_at_a_guests_mercy(ask: Caller) -> None:
    assert fatal(ask, 0, b"\x1b]0;owned\x07\xff\r\n") == "vCPU 0: ]0;owned \ufffd"


def test_long_message_in_shared_memory(ask: Caller) -> None:
    ask.setup.td.shared.map(0x30000, PAGE)
    ask.setup.io.dma.write(0x30000, b"much longer " * 20)
    assert fatal(ask, 1 << 63, b"short", SHARED | 0x30000).endswith("much longer " * 19 + "much longer")


@pytest.mark.parametrize("gpa", [SHARED | 0x40000, 0, SHARED | 0x30800, 2**64 - 1])
def test_long_message_that_cannot_be_read(ask: Caller, gpa: int) -> None:
    ask.setup.td.shared.map(0x30000, PAGE)
    assert "short (and a longer message" in fatal(ask, 1 << 63, b"short", gpa)


# ------------------------------------------------------------------ wild guests
U64 = some.one_of(
    some.sampled_from(
        [
            0,
            1,
            2,
            4,
            8,
            PAGE,
            2 * MIB,
            64 * MIB,
            SHARED,
            SHARED | MIB,
            2 * SHARED,
            0xC0000000,
            0xFEBFC000,
            2**64 - 1,
        ]
    ),
    some.integers(0, 0x20),
    some.integers(0x3F0, 0x1000),
    some.integers(0x6E0, 0x840),
    some.integers(0, 63).map(lambda bit: 1 << bit),
    some.integers(0, 16 << 10).map(lambda page: page * PAGE),
    some.integers(0, 16 << 10).map(lambda page: SHARED | page * PAGE),
    some.integers(0, 2**64 - 1),
)
NUMBER = some.one_of(some.sampled_from(sorted(ghci.CALLS)), some.integers(0, 2**64 - 1))
CALL = some.tuples(
    NUMBER,
    some.one_of(some.just(0), some.just(0), U64),
    some.dictionaries(some.sampled_from([RDX, RBX, RSI, RDI, R8, R9, R12, R13, R14, R15]), U64),
).map(lambda drawn: ("vmcall", {**drawn[2], R11: drawn[0], R10: drawn[1]}))
GPA = some.one_of(
    some.integers(0, SHARED - 1), some.integers(0, 64 * MIB - 1), some.sampled_from([0xC0000000, 0xFEE00000])
)
ACT = some.one_of(
    CALL,
    CALL,
    CALL,
    some.tuples(some.just("shared"), GPA),
    some.tuples(some.just("private"), some.integers(0, 64 * MIB - 1)),
    some.tuples(some.just("accept"), some.integers(0, 31).map(lambda n: n * 2 * MIB), some.integers(0, 1)),
    some.tuples(some.just("wait"), some.integers(0, 1 << 34)),
    some.just(("interrupts",)),
)


@settings(max_examples=50, deadline=None)
@given(some.lists(some.lists(ACT, max_size=25), min_size=1, max_size=2))
def test_a_wild_guest_never_breaks_the_hypervisor(programs: list[list[tuple[Any, ...]]]) -> None:
    """Two vCPUs that do anything: each call ends in a status of the GHCI, the run in an orderly end."""

    def guest(acts: list[tuple[Any, ...]]) -> Guest:
        for act in acts:
            regs = yield act
            if act[0] == "vmcall":
                vendor = act[1][R10] != 0
                assert regs[R10] in ({2**64 - 1000} if vendor else STATUSES), hex(regs[R10])
                assert all(0 <= value < 1 << 64 for value in regs)
        yield POWER_OFF

    setup = Setup(*(lambda acts=acts: guest(acts) for acts in programs), quote_service=lambda _: b"quote")
    tables = len(setup.td.shared._tables)
    result = setup.runner.run(timeout=60)
    assert result.reason is not EndReason.ERROR, result
    # At most the tables of RAM and of what is known as devices, and some for the edges.
    assert len(setup.td.shared._tables) <= tables + 64
    setup.td.teardown()
    assert setup.hypervisor.allocator.used == 0
    assert not setup.module.pamt
