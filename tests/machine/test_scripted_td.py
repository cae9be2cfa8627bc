"""A scripted guest as a real TD: hypervisor, TDX module, VMX and engine together, without QEMU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import (
    Cpuid,
    GuestFault,
    Hlt,
    In,
    Pause,
    Rdtsc,
    Read,
    Script,
    Sti,
    Tdcall,
    Write,
    read_bytes,
)
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

CODE_PAGE = 0x100000
RAM = 0x200000
VP_INFO, VEINFO_GET, MEM_PAGE_ACCEPT = 1, 3, 6
HLT, WRMSR, REPORT_FATAL_ERROR = 12, 32, 0x10003


@pytest.fixture(scope="module")
def platform() -> Iterator[tuple[Platform, Hypervisor]]:
    with Platform.boot(PlatformConfig(machine=MachineConfig(engine="scripted"))) as built:
        yield built, Hypervisor(built.host)


def run(
    platform: tuple[Platform, Hypervisor], program: Callable[[Script], Any], vcpus: int = 1, gpaw: int = 48
) -> tuple[RunResult, list[Script]]:
    """A TD with one page of content and 6 MiB that come on demand, from its making to its end."""
    machine, hypervisor = platform[0].machine, platform[1]
    scripts = [machine.engine.add_program(program) for _ in range(vcpus)]  # type: ignore[attr-defined]
    page = InitialPage(CODE_PAGE, bytes(range(256)) * 16)
    td = Td.build(
        hypervisor, TdConfig(vcpus=vcpus, gpaw=gpaw), [page], ram=[(RAM, 0x800000)], entry_value=0x7000
    )
    try:
        board = BoardConfig(apic_ids=tuple(range(vcpus)))
        io = MachineIo(td, board, console_out=lambda _data: None)
        result = io.runner(hypervisor.processors).run(600)
    finally:
        td.teardown()
    return result, scripts


def tdvmcall(function: int, **registers: int) -> Any:
    """TDG.VP.VMCALL of a GHCI function, with R10-R15 passed."""
    return (yield Tdcall(rax=0, rcx=0xFC00, r10=0, r11=function, **registers))


@pytest.mark.parametrize("gpaw", [48, 52])
def test_the_life_of_a_guest(platform: tuple[Platform, Hypervisor], gpaw: int) -> None:
    shared = 1 << gpaw - 1
    seen: dict[str, Any] = {}

    def program(cpu: Script) -> Any:
        seen["entry"] = cpu.gpr[1], cpu.gpr[8]
        info = yield Tdcall(rax=VP_INFO)
        seen["gpaw, vcpus"] = info.rcx, info.r8 & 0xFFFFFFFF
        seen["leaf 0x21"] = yield Cpuid(0x21)
        seen["measured page"] = yield from read_bytes(CODE_PAGE, 4096)
        # The page comes on demand, in two steps: the hypervisor's, then ours.
        seen["accept"] = (yield Tdcall(rax=MEM_PAGE_ACCEPT, rcx=RAM)).rax
        yield Write(RAM, 0x1234)
        seen["private"] = yield Read(RAM)
        for name, operation in (("hlt", Hlt()), ("in", In(0x71)), ("mmio", Read(shared | 0xC000_0018, 4))):
            try:
                yield operation
            except GuestFault as fault:
                info = yield Tdcall(rax=VEINFO_GET)
                seen[name] = fault.vector, info.rcx & 0xFFFFFFFF, info.rdx, info.r8, info.r9
                if name != "mmio":  # the processor gives no length with an EPT violation
                    seen[name] += (info.r10,)
        # SVR, LVT timer in deadline mode, and ten seconds of sleep.
        yield from tdvmcall(WRMSR, r12=0x80F, r13=0x1FF)
        yield from tdvmcall(WRMSR, r12=0x832, r13=0x400EC)
        start = yield Rdtsc()
        yield from tdvmcall(WRMSR, r12=0x6E0, r13=start + 20_000_000_000)
        yield Sti()
        yield from tdvmcall(HLT, r12=0)
        seen["slept"] = (yield Rdtsc()) - start
        seen["interrupts"] = cpu.interrupts
        yield from tdvmcall(REPORT_FATAL_ERROR, r12=0)

    result, (script,) = run(platform, program, gpaw=gpaw)
    assert result.reason is EndReason.FATAL_ERROR, (result, script.error)
    assert seen.pop("slept") == pytest.approx(20_000_000_000, rel=1e-5)
    assert seen == {
        "entry": (0x7000, 0x7000),
        "gpaw, vcpus": (gpaw, 1),
        "leaf 0x21": (0, int.from_bytes(b"Inte", "little"), int.from_bytes(b"    ", "little"),
                      int.from_bytes(b"lTDX", "little")),
        "measured page": bytes(range(256)) * 16,
        "accept": 0,
        "private": 0x1234,
        # Exit reason, qualification, GLA, GPA, instruction length: SDM table 28-5 for IN AL, DX;
        # bits 0, 7, 8 of an EPT violation's: a read, with its linear address, not in a page walk.
        "hlt": (20, 12, 0, 0, 0, 1),
        "in": (20, 30, 0x71_0008, 0, 0, 1),
        "mmio": (20, 48, 0x181, shared | 0xC000_0018, shared | 0xC000_0018),
        "interrupts": [0xEC],
    }  # fmt: skip


def test_vcpus_share_memory_on_several_processors(platform: tuple[Platform, Hypervisor]) -> None:
    """Each vCPU takes turns with the other through a word in private memory."""
    turns = 20

    def program(cpu: Script) -> Any:
        index = cpu.gpr[6]
        if index == 0:
            yield Tdcall(rax=MEM_PAGE_ACCEPT, rcx=RAM)
            yield Write(RAM, 1)
        order: list[int] = []
        while len(order) < turns:
            try:
                value = yield Read(RAM)
            except GuestFault:
                continue
            if value and value % 2 != index:
                order.append(value)
                yield Write(RAM, value + 1)
            yield Pause(1000)
        if index == 0:
            while (yield Read(RAM)) != 2 * turns + 1:
                yield Pause(1000)
            yield from tdvmcall(REPORT_FATAL_ERROR, r12=0)
        while True:
            yield from tdvmcall(HLT, r12=1)

    result, scripts = run(platform, program, vcpus=2)
    assert result.reason is EndReason.FATAL_ERROR, (result, [script.error for script in scripts])


def test_a_guest_that_fails_is_reported(platform: tuple[Platform, Hypervisor]) -> None:
    def program(_cpu: Script) -> Any:
        yield Hlt()

    result, (script,) = run(platform, program)
    assert result.reason is EndReason.TRIPLE_FAULT
    with pytest.raises(GuestFault, match="#VE"):
        script.result()
