"""TDs side by side on QEMU: nothing that one of them or its hypervisor does to the engine reaches another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.td_config import ATTR_DEBUG
from swtdx.machine.engine.qemu import layout
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.processor import NOTIFICATION_VECTOR
from swtdx.vmm.result import EndReason
from tests.assembler import assemble
from tests.boot import small
from tests.boot.small import CODE, DATA, SmallTd

pytestmark = pytest.mark.qemu

P = DATA + 0x1000
COUNT = 40
#: A TD that does nothing but say so, again and again.
BYSTANDER = f"mov ebp, {COUNT}; again: mov al, 'b'; call put; dec ebp; jnz again"


@pytest.fixture
def platform() -> Iterator[Platform]:
    machine = MachineConfig(memory_bytes=256 << 20, processors_per_package=1)
    with Platform.boot(PlatformConfig(machine=machine)) as booted:
        yield booted


@pytest.fixture
def hypervisor(platform: Platform) -> Hypervisor:
    return Hypervisor(platform.host)


def is_well(td: SmallTd) -> None:
    assert td.run(30).reason is EndReason.POWER_OFF
    assert bytes(td.serial) == b"b" * COUNT


def where(code: str, pattern: bytes) -> int:
    """Where in a TD that runs ``code`` the bytes are."""
    image = assemble(small._FRAME.replace("GUEST", code), 32, CODE)
    return CODE + image.index(pattern)


def with_breakpoint(address: int, dr7: int = 0x402) -> str:
    return f"mov rax, {address}; mov dr0, rax; mov eax, {dr7}; mov dr7, rax"


@pytest.mark.parametrize(
    "code",
    [
        with_breakpoint(where(BYSTANDER, b"\xff\xcd")),
        with_breakpoint(0xF0192),
        with_breakpoint(layout.STACK + 1024 - 8, 0xF0402),
        with_breakpoint(DATA + 0x3FF8, 0xF0402),
    ],
    ids=["in the bystander", "in the stub", "on its stack", "on data that both use"],
)
def test_breakpoints_stay_with_their_td(hypervisor: Hypervisor, code: str) -> None:
    attacker, bystander = SmallTd(hypervisor, code), SmallTd(hypervisor, BYSTANDER)
    attacker.run(30)
    is_well(bystander)
    is_well(SmallTd(hypervisor, BYSTANDER))


def test_int1_is_a_debug_exception_and_stops_nothing_else(hypervisor: Hypervisor) -> None:
    attacker, bystander = SmallTd(hypervisor, ".byte 0xf1"), SmallTd(hypervisor, BYSTANDER)
    assert attacker.run(30).reason is EndReason.TRIPLE_FAULT, "it has no handler"
    is_well(bystander)


#: Writes and patches a function, and says what calling it gives: M and N ask for the page to be moved.
PATCHES = f"""
    mov edi, {P}
    mov dword ptr [rdi], 0x000001b8; mov word ptr [rdi + 4], 0xc300
    call rdi; add al, '0'; call put
    mov al, 'M'; call put
    mov edi, {P}
    mov byte ptr [rdi + 1], 2
    call rdi; add al, '0'; call put
    mov al, 'N'; call put
    mov edi, {P}
    mov al, [rdi + 1]; add al, '0'; call put
    mov edi, {P}
    call rdi; add al, '0'; call put
"""


def test_a_page_that_is_moved_there_and_back_runs_as_it_reads(hypervisor: Hypervisor) -> None:
    def heard(data: bytes) -> None:
        if data[-1:] in b"MN":
            td.runner.stop(EndReason.TIMEOUT, "to move the page")

    td = SmallTd(hypervisor, PATCHES, heard=heard)
    cpu = td.td.cpu
    first, second = td.td.private.small[P], hypervisor.allocator.page("spare")
    for target in (second, first):
        assert td.run(30).reason is EndReason.TIMEOUT
        with cpu.borrowed():
            assert sc.tdh_mem_range_block(cpu, P, 0, td.td.root)[0] == 0
            assert sc.tdh_mem_track(cpu, td.td.root) == 0
            assert sc.tdh_mem_page_relocate(cpu, P, td.td.root, target)[0] == 0
        td.td.private.small[P] = target
    assert td.run(30).reason is EndReason.POWER_OFF
    assert bytes(td.serial) == b"1M2N22"


IDT = DATA + 0x1000
HANDLES = f"""
    mov edi, {IDT}; mov ecx, 64
    lea rax, handler[rip]
1:  mov [rdi], ax; mov word ptr [rdi + 2], 0x10; mov word ptr [rdi + 4], 0x8e00
    mov rdx, rax; shr rdx, 16; mov [rdi + 6], dx; mov dword ptr [rdi + 8], 0; add rdi, 16; dec ecx; jnz 1b
    lidt idtr[rip]
    mov al, 'M'; call put
    sti
    mov ecx, 20000000
2:  dec ecx; jnz 2b
    mov al, '-'; call put
    jmp power_off
idtr: .word 1023
    .quad {IDT}
handler:
    mov al, 'V'; call put
    jmp power_off
"""


@pytest.mark.parametrize(("vectors", "expected"), [((1 << 31) - 1, b"M-"), (1 << 31, b"MV")])
def test_exceptions_are_not_posted(hypervisor: Hypervisor, vectors: int, expected: bytes) -> None:
    def heard(data: bytes) -> None:
        if data[-1:] == b"M":
            td.runner.stop(EndReason.TIMEOUT, "to post")

    td = SmallTd(hypervisor, HANDLES, heard=heard)
    td.run(30)
    hypervisor.host.memory.write(td.td.vcpus[0].pid, vectors.to_bytes(32, "little") + b"\1")
    td.td.cpu.host.interrupt(NOTIFICATION_VECTOR)
    assert td.run(30).reason is EndReason.POWER_OFF
    assert bytes(td.serial) == expected


@pytest.mark.parametrize(
    ("field", "index", "value"),
    [
        ("XBUFF", 64, (1 << 64) - 1),
        ("XBUFF", 65, (1 << 64) - 1),
        ("XBUFF", 65, 1 << 63),
        ("XBUFF", 66, 1),
        ("XBUFF", 71, 1),
        ("XBUFF", 3, (1 << 64) - 1),
        ("GUEST_CR3", 0, (1 << 64) - 1),
        ("GUEST_DR7", 0, (1 << 64) - 1),
        ("DR6", 0, (1 << 64) - 1),
        ("GUEST_CS_ACCESS_RIGHTS", 0, 0xFFFFFFFF),
    ],
)
def test_what_a_debug_tds_host_writes_ends_that_td_at_most(
    hypervisor: Hypervisor, field: str, index: int, value: int
) -> None:
    def heard(data: bytes) -> None:
        if bytes(victim.serial) == b"M":
            victim.runner.stop(EndReason.TIMEOUT, "to write")

    victim = SmallTd(hypervisor, "mov al, 'M'; call put;" + BYSTANDER, heard=heard, attributes=ATTR_DEBUG)
    bystander = SmallTd(hypervisor, BYSTANDER)
    victim.run(30)
    cpu, vcpu = victim.td.cpu, victim.td.vcpus[0]
    with cpu.borrowed():
        row = by_name(Context.VP, field)
        status, _ = sc.tdh_vp_wr(cpu, vcpu.tdvpr, row.id + index, value, (1 << 64) - 1)
        assert status == 0 or row.name != "XBUFF"
        cpu.gpr[1] = vcpu.tdvpr
        assert cpu.call(HOST_BY_NAME["TDH.VP.FLUSH"].number) == 0
    vcpu.cpu = None
    victim.run(10)
    is_well(bystander)


def test_a_td_that_takes_all_nested_tables(platform: Platform, hypervisor: Hypervisor) -> None:
    engine: Any = platform.machine.engine
    _ = platform.machine.tsc_hz
    del engine._pool.free[60:]
    # Private memory 2 MiB apart, as far as the machine has it.
    greedy = SmallTd(
        hypervisor,
        """mov ebx, 0x200000; mov ebp, 0x6000000
        1: mov rcx, rbx; mov eax, 6; .byte 0x66,0x0f,0x01,0xcc; inc qword ptr [rbx]
        add ebx, 0x200000; cmp ebx, ebp; jb 1b; mov al, 'E'; call put""",
        ram=[(2 << 20, 0x6000000)],
    )
    bystander = SmallTd(hypervisor, BYSTANDER)
    assert greedy.run(60).reason is EndReason.POWER_OFF
    assert bytes(greedy.serial) == b"E"
    is_well(bystander)
