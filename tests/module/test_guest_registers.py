"""Control registers, CPUID and MSRs as a TD's guest meets them, by the SDM and the base ABI."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine.engine.scripted import (
    Cpuid,
    GuestFault,
    MovFromCr,
    MovToCr,
    Rdmsr,
    Read,
    SetCpl,
    Tdcall,
    Write,
    Wrmsr,
    Xsetbv,
)
from swtdx.proof.conformance import stages
from swtdx.proof.conformance.world import Td, World

GP, VE = 13, 20
CR_ACCESS, CPUID_EXIT, RDMSR_EXIT, WRMSR_EXIT, TDCALL_EXIT = 28, 10, 31, 32, 77
VEINFO, CPUIDVE = 3, 5
PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31))
MCE, PGE, LA57, VMXE, SMXE, OSXSAVE = (1 << bit for bit in (6, 7, 12, 13, 14, 18))
KL, PKE, CET, PKS, UINTR = (1 << bit for bit in (19, 22, 23, 24, 25))
#: XFAM: x87 and SSE; these, AVX and PKRU, which is all that the engine's processor has.
SMALL, WIDE = 0x3, 0x3 | 1 << 2 | 1 << 9
ATTRIBUTES, ATTRIBUTE_PKS = 1 << 28, 1 << 30


def make(world: World, cpuid: dict[int, int], **changes: int) -> Td:
    """A TD that runs, with other TD_PARAMS than the bench's; ``cpuid``: words of CPUID_CONFIG by number."""
    td = stages.create(world)
    for name, step in stages.TD_STEPS:
        if name == "built":
            params = bytearray(stages.td_params(world, **changes))
            for number, value in cpuid.items():
                at = 256 + 4 * number
                params[at : at + 4] = value.to_bytes(4, "little")
            world.ok("TDH.MNG.INIT", rcx=td.tdr, rdx=world.buffer(bytes(params)))
        else:
            step(world, td)
    return td


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield stages.bring_up(made, "ready")


class Guest:
    """A TD whose only vCPU runs one program after the other."""

    def __init__(
        self, world: World, xfam: int, cpuid: dict[int, int] | None = None, attributes: int = 0
    ) -> None:
        attributes = attributes or ATTRIBUTES | (ATTRIBUTE_PKS if xfam == WIDE else 0)
        self.td = make(world, cpuid or {}, xfam=xfam, attributes=attributes)
        self._world = world
        self._next: Any = None
        self._result: Any = None
        self.script: Any = None

    def _loop(self, cpu: Any) -> Any:
        while True:
            self._result = yield from self._next(cpu)
            yield Tdcall(rax=0, rcx=0)

    def run(self, program: Any) -> Any:
        """What ``program`` returns; its vCPU must be alive afterwards."""
        self._next, self._result = program, None
        if self.script is None:
            self.script = self._world.guest(self._loop)
        after = self._world.enter(self.td)
        if self.script.error is not None:
            raise self.script.error
        assert after[0] == TDCALL_EXIT, f"TDH.VP.ENTER gave {after[0]:#x}"
        return self._result


Guests = dict[int, Guest]


@pytest.fixture(scope="module")
def guests() -> Guests:
    return {}


def usable(world: World, guests: Guests, xfam: int) -> Guest:
    """The guest with this XFAM; another one, if a test has left its vCPU for dead."""
    guest = guests.get(xfam)
    if guest is None or (guest.script is not None and guest.script.error is not None):
        guest = guests[xfam] = Guest(world, xfam)
    return guest


@pytest.fixture
def small(guests: Guests, world: World) -> Guest:
    return usable(world, guests, SMALL)


@pytest.fixture
def wide(guests: Guests, world: World) -> Guest:
    return usable(world, guests, WIDE)


def tried(operation: Any) -> Any:
    """Its result; or (vector, and of a #VE its exit reason and qualification)."""
    try:
        return (yield operation)
    except GuestFault as fault:
        if fault.vector != VE:
            return (fault.vector,)
        info = yield Tdcall(rax=VEINFO)
        return VE, info.rcx & 0xFFFFFFFF, info.rdx


# ---------------------------------------------------------------------- CR0 and CR4
@pytest.mark.parametrize(
    ("what", "change", "expected"),
    [
        ("PG without PE", lambda old: (old | PG) & ~PE, (GP,)),
        ("no PE", lambda old: old & ~(PE | PG), (VE, CR_ACCESS, 0)),
        ("CD", lambda old: old | CD, (VE, CR_ACCESS, 0)),
        ("CD and NW", lambda old: old | CD | NW, (VE, CR_ACCESS, 0)),
        ("NW alone", lambda old: old | NW, (VE, CR_ACCESS, 0)),
        ("no NE", lambda old: old & ~NE, (GP,)),
        ("bit 32", lambda old: old | 1 << 32, (GP,)),
    ],
)
def test_cr0_that_is_refused(world: World, small: Guest, what: str, change: Any, expected: Any) -> None:
    def program(_cpu: Any) -> Any:
        old = yield MovFromCr(0)
        return old, (yield from tried(MovToCr(0, change(old)))), (yield MovFromCr(0))

    before, outcome, after = small.run(program)
    assert (outcome, after) == (expected, before), what


@pytest.mark.parametrize("bit", [6, 10, 15, 17, 19, 25, 28])
def test_reserved_bits_of_cr0_are_ignored(world: World, small: Guest, bit: int) -> None:
    def program(_cpu: Any) -> Any:
        old = yield MovFromCr(0)
        outcome = yield from tried(MovToCr(0, (old | 1 << bit) ^ AM))
        changed = yield MovFromCr(0)
        yield MovToCr(0, old)
        return old, outcome, changed

    before, outcome, after = small.run(program)
    assert (outcome, after) == (None, before ^ AM)


@pytest.mark.parametrize(
    ("what", "change", "expected"),
    [
        ("no MCE", lambda old: old & ~MCE, (VE, CR_ACCESS, 4)),
        ("VMXE", lambda old: old | VMXE, (VE, CR_ACCESS, 4)),
        ("PKE without XFAM", lambda old: old | PKE, (GP,)),
        ("CET without XFAM", lambda old: old | CET, (GP,)),
        ("PKS without ATTRIBUTES", lambda old: old | PKS, (GP,)),
        ("UINTR without XFAM", lambda old: old | UINTR, (GP,)),
        ("key locker", lambda old: old | KL, (GP,)),
        ("bit 15", lambda old: old | 1 << 15, (GP,)),
        ("bit 26", lambda old: old | 1 << 26, (GP,)),
        ("bit 40", lambda old: old | 1 << 40, (GP,)),
        ("UINTR, and no MCE", lambda old: (old | UINTR) & ~MCE, (GP,)),
    ],
)
def test_cr4_that_is_refused(world: World, small: Guest, what: str, change: Any, expected: Any) -> None:
    def program(_cpu: Any) -> Any:
        old = yield MovFromCr(4)
        return old, (yield from tried(MovToCr(4, change(old)))), (yield MovFromCr(4))

    before, outcome, after = small.run(program)
    assert (outcome, after) == (expected, before), what
    assert before & (MCE | VMXE) == MCE, "what a guest reads: MCE, and no VMXE"


@pytest.mark.parametrize(
    ("what", "change", "cr0", "expected"),
    [
        ("PKE", lambda old: old | PKE, WP, None),
        ("PKE, and no MCE", lambda old: (old | PKE) & ~MCE, WP, (VE, CR_ACCESS, 4)),
        ("PKS", lambda old: old | PKS, WP, None),
        ("PKS and PKE, and no MCE", lambda old: (old | PKS | PKE) & ~MCE, WP, (VE, CR_ACCESS, 4)),
        ("PKS and KL", lambda old: old | PKS | KL, WP, (GP,)),
        ("PGE", lambda old: old ^ PGE, 0, None),
    ],
)
def test_cr4_with_more_components(
    world: World, wide: Guest, what: str, change: Any, cr0: int, expected: Any
) -> None:
    def program(_cpu: Any) -> Any:
        first = yield MovFromCr(0)
        yield MovToCr(0, first & ~WP | cr0)
        old = yield MovFromCr(4)
        outcome = yield from tried(MovToCr(4, change(old)))
        now = yield MovFromCr(4)
        yield MovToCr(4, old)
        yield MovToCr(0, first)
        return outcome, now, change(old) if expected is None else old

    outcome, now, wanted = wide.run(program)
    assert (outcome, now) == (expected, wanted), what


# ---------------------------------------------------------------------- CPUID
def cpuids(guest: Guest, *leaves: tuple[int, int]) -> list[Any]:
    def program(_cpu: Any) -> Any:
        found = []
        for leaf in leaves:
            found.append((yield from tried(Cpuid(*leaf))))  # noqa: PERF401
        return found

    result: list[Any] = guest.run(program)
    return result


def test_cpuid_of_time_signature_and_address_sizes(world: World, small: Guest) -> None:
    time, signature, sizes, vendor = cpuids(small, (0x15, 0), (0x21, 0), (0x80000008, 0), (0, 0))
    # TSC_FREQUENCY is 80 in units of 25 MHz.
    assert time == (1, 80, 25_000_000, 0)
    assert signature == (0, *(int.from_bytes(text, "little") for text in (b"Inte", b"    ", b"lTDX")))
    assert sizes[0] & 0xFF == 52
    assert sizes[0] >> 8 & 0xFF in (48, 57)
    assert sizes[0] >> 16 == 0
    assert vendor == (0x23, *(int.from_bytes(text, "little") for text in (b"Genu", b"ntel", b"ineI")))


@pytest.mark.parametrize(
    "leaf", [(6, 0), (0x1F, 0), (0x80000006, 0), (0x40000000, 0), (0xB, 0), (4, 9)], ids=str
)
def test_cpuid_that_the_hypervisor_answers(world: World, small: Guest, leaf: tuple[int, int]) -> None:
    assert cpuids(small, leaf) == [(VE, CPUID_EXIT, 0)]


def test_cpuid_mirrors_cr4_and_the_index(world: World, wide: Guest) -> None:
    def program(_cpu: Any) -> Any:
        found = []
        old = yield MovFromCr(4)
        for cr4 in (old & ~(OSXSAVE | PKE), old | OSXSAVE, old | PKE | OSXSAVE):
            yield MovToCr(4, cr4)
            found.append(((yield Cpuid(1)), (yield Cpuid(7, 0))))
        yield MovToCr(4, old)
        return found

    seen = wide.run(program)
    assert [first[2] >> 27 & 1 for first, _ in seen] == [0, 1, 1]
    assert [second[2] >> 4 & 1 for _, second in seen] == [0, 0, 1]
    # Nothing else of these leaves changes with CR4.
    for one, two in itertools.pairwise(seen):
        assert (one[0][0], one[0][1], one[0][3]) == (two[0][0], two[0][1], two[0][3])
        assert one[0][2] & ~(1 << 27) == two[0][2] & ~(1 << 27)
        assert one[1][2] & ~(1 << 4) == two[1][2] & ~(1 << 4)
    first = seen[0][0]
    assert first[1] >> 24 == 0, "the initial APIC id is the vCPU's index"
    assert first[2] >> 31 == 1, "a hypervisor is present"
    assert not first[2] >> 5 & 1, "no VMX"
    assert not first[2] >> 6 & 1, "no SMX"
    native = world.lps[0].cpuid(1)
    assert first[0] & 0x0FFF3FFF == native[0] & 0x0FFF3FFF


def test_cpuid_of_the_xsave_area(world: World, small: Guest, wide: Guest) -> None:
    """Leaf 0xD (SDM volume 1, 13.2): components of XFAM only, size by XCR0, each component where it is."""
    native = world.lps[0].cpuid

    def program(_cpu: Any) -> Any:
        found = []
        old = yield MovFromCr(4)
        yield MovToCr(4, old | OSXSAVE)
        for xcr0 in (1, 3, 7):
            yield Xsetbv(xcr0)
            found.append(((yield Cpuid(0xD, 0)), (yield Cpuid(0xD, 1))))
        components = []
        for component in range(2, 19):
            components.append((yield Cpuid(0xD, component)))  # noqa: PERF401
        yield Xsetbv(1)
        yield MovToCr(4, old)
        return found, components

    found, components = wide.run(program)
    assert [main[1] for main, _ in found] == [576, 576, 576 + 256]
    assert [second[1] for _, second in found] == [576, 576, 576 + 256]
    for main, second in found:
        assert (main[0], main[3]) == (0x207, 0), "XCR0: x87, SSE, AVX, PKRU"
        pkru = native(0xD, 9)
        assert main[2] == pkru[1] + pkru[0], "PKRU is the last one in the standard format"
        assert second[2] == 0, "no supervisor component"
        assert second[0] >> 4 & 1 == 0, "no XFD"
    for component, values in enumerate(components, 2):
        assert values == (native(0xD, component) if WIDE >> component & 1 else (0, 0, 0, 0)), component
    (none,) = cpuids(small, (0xD, 0))
    assert none == (3, 576, 576, 0)


def test_cpuid_by_xfam(world: World, small: Guest, wide: Guest) -> None:
    """Bits of leaves 1 and 7 that need a component (base ABI: XFAM), against the processor's own."""
    native_1, native_7 = world.lps[0].cpuid(1), world.lps[0].cpuid(7, 0)
    # AVX and F16C are the host's to give, where XFAM has AVX; FMA and AVX2 are there by XFAM alone.
    fma_avx_f16c, fma, avx2 = 1 << 12 | 1 << 28 | 1 << 29, 1 << 12, 1 << 5
    one, seven = cpuids(wide, (1, 0), (7, 0))
    assert one[2] & fma_avx_f16c == fma
    given = Guest(world, WIDE, {2: fma_avx_f16c & ~fma})
    (one,) = cpuids(given, (1, 0))
    assert one[2] & fma_avx_f16c == native_1[2] & fma_avx_f16c == fma_avx_f16c
    (none,) = cpuids(Guest(world, SMALL, {2: fma_avx_f16c & ~fma}), (1, 0))
    assert not none[2] & fma_avx_f16c
    assert seven[1] & avx2 == native_7[1] & avx2 != 0
    assert seven[2] >> 3 & 1 == native_7[2] >> 3 & 1 == 1, "PKU"
    avx512 = 0xDC230000
    assert not seven[1] & avx512
    one, seven = cpuids(small, (1, 0), (7, 0))
    assert not one[2] & fma_avx_f16c
    assert not seven[1] & (avx2 | avx512)
    assert not seven[2] & (1 << 3 | 1 << 4 | 1 << 7 | 1 << 9 | 1 << 10), "PKU, OSPKE, CET_SS, VAES, VPCLMUL"
    assert not seven[3] & (1 << 20 | 1 << 22 | 1 << 24 | 1 << 25), "CET_IBT, AMX"
    assert not seven[2] >> 31 & 1, "PKS comes with ATTRIBUTES.PKS"
    assert cpuids(wide, (7, 0))[0][2] >> 31 & 1


def test_cpuid_by_ve(world: World, small: Guest) -> None:
    """TDG.VP.CPUIDVE.SET: #VE for supervisor and user apart."""

    def program(_cpu: Any) -> Any:
        found = []
        for flags in (0, 1, 2, 3):
            yield Tdcall(rax=CPUIDVE, rcx=flags)
            for ring in (0, 3):
                yield SetCpl(ring)
                try:
                    yield Cpuid(1)
                    found.append(False)
                except GuestFault:
                    yield SetCpl(0)
                    yield Tdcall(rax=VEINFO)
                    found.append(True)
                yield SetCpl(0)
        yield Tdcall(rax=CPUIDVE, rcx=0)
        return found

    assert small.run(program) == [False, False, True, False, False, True, True, True]


def test_cpuid_of_syscall(world: World, small: Guest) -> None:
    """SYSCALL is there in 64-bit mode only (SDM: CPUID.80000001H:EDX[11])."""
    (found,) = cpuids(small, (0x80000001, 0))
    assert found[3] >> 11 & 1 == 1
    assert found[3] >> 29 & 1 == 1, "64-bit mode"


# ---------------------------------------------------------------------- MSRs
#: Bits that are always 1 (SDM volume 3, appendix A.3 to A.5), besides those that the module sets.
PIN_1, EXIT_1, ENTRY_1 = 0x16, 0x36DFF, 0x11FF
ENTRY_NEEDED = ENTRY_1 | 1 << 2 | 1 << 14 | 1 << 15 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21
#: What the virtual VMX capabilities of such a TD are, by the SDM's appendix A and the module's constants.
VMX = {
    0x480: 1 << 54 | 1 << 55 | 1 << 56,
    0x485: 1 << 5 | 1 << 6 | 1 << 7 | 1 << 14 | 4 << 16 | 1 << 29 | 1 << 30,
    0x486: 1 << 5,
    0x487: 0x8005003F,
    0x48D: (0x29 | PIN_1) * ((1 << 32) + 1),
    0x48F: (0x1F3C8204 | EXIT_1) * ((1 << 32) + 1),
    # Debug TDs and TDs with PERFMON or PKS have more; IA-32e mode guest (bit 9) varies.
    0x490: (ENTRY_NEEDED & ~(1 << 9)) | (ENTRY_NEEDED | 1 << 9) << 32,
    0x491: 0,
    0x492: 0x8E,
}


def test_virtual_vmx_capabilities(world: World, small: Guest) -> None:
    def program(_cpu: Any) -> Any:
        found = {}
        for index in (*VMX, 0x488, 0x489, 0x48B, 0x48C, 0x48E):
            found[index] = yield from tried(Rdmsr(index))
        for index in (0x481, 0x482, 0x483, 0x484, 0x48A):
            assert (yield from tried(Rdmsr(index))) == (VE, RDMSR_EXIT, 0)
        for index in (*VMX, 0x48A):
            assert (yield from tried(Wrmsr(index, 0))) == (GP,)
        return found

    found = small.run(program)
    assert {index: hex(found[index]) for index in VMX} == {index: hex(value) for index, value in VMX.items()}
    assert found[0x488] == MCE | VMXE
    assert found[0x489] & (MCE | VMXE) == MCE | VMXE
    assert not found[0x489] & (KL | PKE | CET | PKS | UINTR), "none of these has its XFAM or ATTRIBUTES bit"
    # EPT: execute-only, 2 MiB, 1 GiB, advanced information; no supervisor shadow stack without CET.
    assert found[0x48C] & ~(0x3F << 48) == 1 | 1 << 16 | 1 << 17 | 1 << 22
    proc, proc2 = found[0x48E], found[0x48B]
    assert proc & 0xFFFFFFFF & ~(proc >> 32) == 0, "what must be 1 may be 1"
    assert proc2 & 0xFFFFFFFF & ~(proc2 >> 32) == 0
    for bit in (10, 29, 11):  # MWAIT, MONITOR, RDPMC exiting: this TD has none of the three
        assert proc >> bit & 1 == 1
    for bit in (26, 27):  # USER WAIT and PCONFIG: nor these
        assert proc2 >> 32 + bit & 1 == 0


@pytest.mark.parametrize(
    ("index", "read", "write"),
    [
        (0x10, "native", (VE, WRMSR_EXIT, 0)),
        (0x8C, (GP,), (GP,)),
        (0x98, (GP,), (GP,)),
        (0x9B, (GP,), (GP,)),
        (0xBC, "native", (VE, WRMSR_EXIT, 0)),
        (0xC1, (GP,), (GP,)),
        (0xE1, (GP,), (GP,)),
        (0x122, (GP,), (GP,)),
        (0x1A0, "emulated", (VE, WRMSR_EXIT, 0)),
        (0x3, (VE, RDMSR_EXIT, 0), (VE, WRMSR_EXIT, 0)),
        (0x2000, (VE, RDMSR_EXIT, 0), (VE, WRMSR_EXIT, 0)),
        (0xC0002000, (VE, RDMSR_EXIT, 0), (VE, WRMSR_EXIT, 0)),
        (0x4000_0000, (VE, RDMSR_EXIT, 0), (VE, WRMSR_EXIT, 0)),
    ],
    ids=lambda value: hex(value) if isinstance(value, int) else "",
)
def test_msrs(world: World, small: Guest, index: int, read: Any, write: Any) -> None:
    def program(_cpu: Any) -> Any:
        return (yield from tried(Rdmsr(index))), (yield from tried(Wrmsr(index, 0)))

    got, put = small.run(program)
    assert put == write
    assert isinstance(got, int) if isinstance(read, str) else got == read


def test_emulated_msrs(world: World, small: Guest) -> None:
    native = world.lps[0].rdmsr

    def program(_cpu: Any) -> Any:
        efer = yield Rdmsr(0xC0000080)
        outcome = []
        for value in (efer ^ 1, efer ^ 1 << 10, efer ^ 1 << 8, efer ^ 1 << 11, efer | 1 << 16, efer):
            outcome.append((yield from tried(Wrmsr(0xC0000080, value))))
            outcome.append((yield Rdmsr(0xC0000080)))
        debug = []
        for value in (1, 1 << 6 | 1 << 7, 1 << 6, 1 << 13, 1 << 2, 1 << 16, 1 << 7, 0):
            debug.append((yield from tried(Wrmsr(0x1D9, value))))
            debug.append((yield Rdmsr(0x1D9)))
        xss = []
        for value in (1 << 11, 1 << 8, 1 << 63, 0):
            xss.append((yield from tried(Wrmsr(0xDA0, value))))  # noqa: PERF401
        values = {}
        for index in (0x10A, 0xBD, 0x1A0, 0x345):
            values[index] = yield Rdmsr(index)
        return efer, outcome, debug, xss, values

    efer, outcome, debug, xss, values = small.run(program)
    refused = (VE, WRMSR_EXIT, 0)
    assert outcome == [
        None, efer ^ 1,
        None, efer,  # LMA is not written, SCE is again
        refused, efer,  # LME
        refused, efer,  # NXE
        refused, efer,
        None, efer,
    ]  # fmt: skip
    assert debug == [
        None, 1, None, 1 << 6 | 1 << 7, refused, 1 << 6 | 1 << 7,
        None, 0, (GP,), 0, (GP,), 0, None, 1 << 7, None, 0,
    ]  # fmt: skip
    assert xss == [(GP,), (GP,), (GP,), None]
    assert values[0xBD] == 1
    assert values[0x345] == 0
    assert values[0x1A0] == native(0x1A0) & ~(1 << 7) | 1 << 12
    capabilities = values[0x10A]
    # RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, DOITM, SBDR, FBSDP, PSDP.
    needed = sum(1 << bit for bit in (0, 1, 3, 5, 6, 8, 12, 13, 14, 15))
    assert capabilities & needed == needed
    gone = sum(1 << bit for bit in (2, 4, 7, 9, 10, 11, 16, 17, 18, 20, 21, 22, 23, 24)) | ~0x1FFFFFF
    assert capabilities & gone == 0, hex(capabilities & gone)


# ---------------------------------------------------------------------- addresses
@pytest.mark.parametrize(
    ("gpa", "write"), [(1 << 48, False), (1 << 48, True), (1 << 51, False), (3 << 47, True)]
)
def test_addresses_above_the_shared_bit(world: World, gpa: int, write: bool) -> None:
    """#PF with P and RSVD, as if the guest's own page table had set these bits (base spec: GPAW)."""
    guest = Guest(world, SMALL)

    def program(_cpu: Any) -> Any:
        try:
            yield Write(gpa, 1) if write else Read(gpa)
        except GuestFault as fault:
            return fault.vector, fault.error_code
        return None

    assert guest.run(program) == (14, 1 << 3 | 1 << 0 | write << 1)


@pytest.mark.parametrize(
    ("leaf", "register", "alignment"),
    [(2, "rcx", 64), (4, "rcx", 1024), (4, "rdx", 64), (22, "rcx", 256)],
    ids=["RTMR.EXTEND", "REPORT", "REPORTDATA", "VERIFYREPORT"],
)
def test_buffers_are_aligned(small: Guest, leaf: int, register: str, alignment: int) -> None:
    def program(_cpu: Any) -> Any:
        found = []
        for power in range(alignment.bit_length() - 1):
            operands = {"rcx": stages.FIRST, "rdx": 0, "r8": 0} | {register: stages.FIRST | 1 << power}
            found.append((yield Tdcall(rax=leaf, **operands)).rax)
        return found

    number = {"rcx": 1, "rdx": 2}[register]
    assert set(small.run(program)) == {0xC000010000000000 | number}


def test_virtual_vmx_capabilities_of_a_debug_td(world: World) -> None:
    """It may load and save performance controls, and load PKRS, whatever its other attributes are."""
    guest = Guest(world, SMALL, attributes=ATTRIBUTES | 1)

    def program(_cpu: Any) -> Any:
        return (yield Rdmsr(0x48F)), (yield Rdmsr(0x490))

    exits, entries = guest.run(program)
    assert exits == (0x1F3C8204 | EXIT_1 | 1 << 12 | 1 << 30) * ((1 << 32) + 1)
    more = 1 << 13 | 1 << 22
    assert entries == (ENTRY_NEEDED & ~(1 << 9) | more) | (ENTRY_NEEDED | 1 << 9 | more) << 32


def test_a_pending_page_without_sept_ve_disable(world: World) -> None:
    """#VE with the exit that the hypervisor would have got (base spec: ATTRIBUTES.SEPT_VE_DISABLE)."""
    guest = Guest(world, SMALL, attributes=1)

    def program(_cpu: Any) -> Any:
        first = yield from tried(Read(stages.PENDING + 8))
        second = yield from tried(Write(stages.PENDING + 16, 1))
        yield Tdcall(rax=6, rcx=stages.PENDING)
        return first, second, (yield Read(stages.PENDING + 8))

    first, second, after = guest.run(program)
    assert (first[:2], first[2] & 0x3F) == ((VE, 48), 1)
    assert (second[:2], second[2] & 0x3F) == ((VE, 48), 2)
    assert after == 0
