"""How guests end that do not behave: each with a report that says what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.result import EndReason, RunResult
from tests.boot.small import RAM, RAM_END, SmallTd

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    config = MachineConfig(memory_bytes=512 << 20, processors_per_package=1)
    with Platform.boot(PlatformConfig(machine=config)) as platform:
        yield Hypervisor(platform.host)


def end_of(hypervisor: Hypervisor, code: str, timeout: float | None = 60) -> tuple[RunResult, bytes]:
    """How it ends, and what it has said.  Whatever happened, everything comes back."""
    guest = SmallTd(hypervisor, code)
    result = guest.run(timeout)
    guest.td.teardown()
    assert hypervisor.allocator.used == 0
    return result, bytes(guest.serial)


def test_a_good_end(hypervisor: Hypervisor) -> None:
    result, said = end_of(hypervisor, "mov al, 'A'; call put; mov al, 'Z'; call put")
    assert (result.reason, result.detail, said) == (EndReason.POWER_OFF, "", b"AZ")


def test_triple_fault(hypervisor: Hypervisor) -> None:
    result, said = end_of(hypervisor, "mov al, '!'; call put; ud2")
    assert (result.reason, said) == (EndReason.TRIPLE_FAULT, b"!")
    assert not result.orderly


def test_spinning_ends_with_the_time(hypervisor: Hypervisor) -> None:
    before = time.monotonic()
    result, _ = end_of(hypervisor, "cli; 1: jmp 1b", timeout=0.3)
    assert result.reason is EndReason.TIMEOUT
    assert 0.3 <= time.monotonic() - before < 20
    assert "VM entries" in result.detail


def test_spinning_on_calls_ends_with_the_time(hypervisor: Hypervisor) -> None:
    result, said = end_of(hypervisor, "1: mov al, '.'; call put; jmp 1b", timeout=0.3)
    assert result.reason is EndReason.TIMEOUT
    assert set(said) == {ord(".")}


def test_sleeping_for_ever(hypervisor: Hypervisor) -> None:
    result, _ = end_of(hypervisor, "1: mov r11d, VMCALL_HLT; mov r12d, 1; call vmcall; jmp 1b")
    assert result.reason is EndReason.HALTED


def test_giving_up_with_a_message(hypervisor: Hypervisor) -> None:
    code = """mov r11d, VMCALL_REPORT_FATAL_ERROR; mov r12d, 42; xor r13d, r13d; xor r10d, r10d
        mov r14, [rip+text]; mov r15, [rip+text+8]; mov ebx, 0; mov edi, 0; mov esi, 0; xor r8d, r8d
        xor r9d, r9d; xor edx, edx; mov ecx, PASS_MESSAGE; xor eax, eax; TDCALL; ud2
        text: .ascii "no root device\\0\\0" """
    result, _ = end_of(hypervisor, code)
    assert result.reason is EndReason.FATAL_ERROR
    assert result.detail == "vCPU 0: error code 0x2a: no root device"


def test_memory_that_was_not_accepted(hypervisor: Hypervisor) -> None:
    result, _ = end_of(hypervisor, f"mov rax, [{RAM + 0x1238}]; call put")
    assert result.reason is EndReason.BAD_ACCESS
    assert f"read at private GPA {RAM + 0x1000:#x}" in result.detail, result.detail
    assert "which it has not accepted" in result.detail


def test_memory_that_is_not_there(hypervisor: Hypervisor) -> None:
    result, _ = end_of(hypervisor, f"mov edi, {RAM_END}; mov [rdi], eax")
    assert result.reason is EndReason.BAD_ACCESS
    assert f"write at private GPA {RAM_END:#x}" in result.detail, result.detail


def test_accepted_memory_is_zero_and_stays(hypervisor: Hypervisor) -> None:
    """The good case of the two above: 2 MiB accepted at once, a page alone, and one twice."""
    code = f"""
        mov ecx, {RAM} + 1; mov eax, TDG_MEM_PAGE_ACCEPT; TDCALL; test rax, rax; jnz bad
        mov edi, {RAM}; mov ecx, {2 << 17}; xor eax, eax; repe scasq; jne bad
        mov qword ptr [{RAM} + 0x12340], 77; cmp qword ptr [{RAM} + 0x12340], 77; jne bad
        mov ecx, {RAM + (4 << 20)}; mov eax, TDG_MEM_PAGE_ACCEPT; TDCALL; test rax, rax; jnz bad
        mov ecx, {RAM + (4 << 20)}; mov eax, TDG_MEM_PAGE_ACCEPT; TDCALL; shr rax, 32
        cmp eax, PAGE_ALREADY_ACCEPTED; jne bad
        mov al, 'k'; call put; jmp power_off
        bad: mov al, 'b'; call put """
    result, said = end_of(hypervisor, code)
    assert (result.reason, said) == (EndReason.POWER_OFF, b"k"), result


def test_code_in_shared_memory(hypervisor: Hypervisor) -> None:
    """A fetch from shared memory faults in the guest's own page tables or the shared EPT: it never runs."""
    code = f"""
        mov r11d, 0x10001; mov r12, 1 << 47; add r12, {RAM}; mov r13d, 4096; call vmcall
        test r10, r10; jnz power_off
        mov rdi, SHARED_WINDOW; add rdi, {RAM}; mov byte ptr [rdi], 0xF4
        mov eax, offset shared_pdpt; btr qword ptr [rax], 63; mov rax, cr3; mov cr3, rax
        mov al, 'x'; call put; jmp rdi"""
    result, said = end_of(hypervisor, code)
    assert said == b"x"
    assert result.reason in (EndReason.STUCK, EndReason.TRIPLE_FAULT, EndReason.TD_FATAL), result


def test_nonsense_is_answered_and_does_no_harm(hypervisor: Hypervisor) -> None:
    """Calls that do not exist are refused; thousands with random operands leave both sides alive."""
    code = """
        mov r11d, 0x7777; call vmcall; bt r10, 63; jnc bad
        mov r11d, VMCALL_IO; mov r12d, 3; mov r13d, 0; mov r14d, 0x60; call vmcall; bt r10, 63; jnc bad
        mov r11d, 0x10001; mov r12d, 0x2001; mov r13d, 4096; call vmcall; bt r10, 63; jnc bad
        mov r10, 0x56789; mov r11d, 30; call vmcall_r10; test r10, r10; jz bad
        mov rbp, 0x9E3779B97F4A7C15; mov ebx, 3000
    again:
        .irp reg, r12, r13, r14, r15
        mov rax, rbp; shl rax, 13; xor rbp, rax; mov rax, rbp; shr rax, 7; xor rbp, rax
        mov rax, rbp; shl rax, 17; xor rbp, rax; mov ecx, ebp; and ecx, 0x3f; mov \\reg, rbp; shr \\reg, cl
        .endr
        # Any call but those that would end the run or sleep, or write to a port.
        mov r11, rbp; shr r11, 40; and r11d, 0xf
        lea rax, [rip + calls]; mov r11d, [rax + 4 * r11]; call vmcall
        dec ebx; jnz again
        mov al, 'k'; call put; jmp power_off
    bad: mov al, 'b'; call put; jmp power_off
        .balign 4
    calls: .long 10, 31, 32, 48, 54, 0x10000, 0x10001, 0x10002, 0x10004, 31, 48, 0, 1, 0x10005, 0xffff, 7"""
    guest = SmallTd(hypervisor, code)
    result = guest.run()
    assert (result.reason, bytes(guest.serial)) == (EndReason.POWER_OFF, b"k"), result
    assert sum(result.stats.tdvmcalls.values()) >= 3000
    assert result.stats.tdvmcalls["unknown"] > 300
    guest.td.teardown()
    assert hypervisor.allocator.used == 0
