"""MOV to CR4 in a TD, bit by bit, on both engines: what the TD's CPUID shows can be switched on.

What to expect: TDX module base specification, CR4 in a TD (VMXE and SMXE are #VE, what ATTRIBUTES and XFAM
do not give is #GP), and Intel SDM volume 3, section 2.5 (bits without their CPUID feature are reserved).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.arch import x86
from swtdx.arch.td_config import ATTR_PKS
from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import Cpuid, GuestFault, MovFromCr, MovToCr, Script, Tdcall
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.boot.small import FAULT_GATES, SmallTd

BITS = range(29)
#: CR4 bit: CPUID leaf, subleaf, register (EAX, EBX, ECX, EDX as 0 to 3), bit.
FEATURE = {
    0: (1, 0, 3, 1), 1: (1, 0, 3, 1), 2: (1, 0, 3, 4), 3: (1, 0, 3, 2), 4: (1, 0, 3, 3), 5: (1, 0, 3, 6),
    6: (1, 0, 3, 7), 7: (1, 0, 3, 13), 9: (1, 0, 3, 24), 10: (1, 0, 3, 25), 11: (7, 0, 2, 2),
    12: (7, 0, 2, 16), 16: (7, 0, 1, 0), 17: (1, 0, 2, 17), 18: (1, 0, 2, 26), 20: (7, 0, 1, 7),
    21: (7, 0, 1, 20), 22: (7, 0, 2, 3), 23: (7, 0, 2, 7), 24: (7, 0, 2, 31), 25: (7, 0, 3, 5),
}  # fmt: skip
#: Bytes of the leaves that the guest sends: leaf 1, then leaf 7, four registers each.
CODE = f"""
    .set idt, data + 0x800
    mov edi, offset idt
    {FAULT_GATES}
    mov edi, offset data
    mov word ptr [rdi], 0x14f
    mov eax, offset idt; mov [rdi + 2], rax
    lidt [rdi]
    .irp leaf, 1, 7
    mov eax, \\leaf; xor ecx, ecx; cpuid
    mov edi, offset data + 0x20
    mov [rdi], eax; mov [rdi + 4], ebx; mov [rdi + 8], ecx; mov [rdi + 12], edx
    mov esi, edi; mov ecx, 16; call put_all
    .endr
    xor ebp, ebp
try:
    mov rsi, cr4
    mov rax, rsi; bts rax, rbp
    mov bl, 'n'
    mov cr4, rax
    mov rax, rsi; mov cr4, rax
    mov al, bl; call put
    inc ebp; cmp ebp, 29; jne try
    jmp power_off
fault_13:
    mov bl, 'g'
    add qword ptr [rsp + 8], 3
    add rsp, 8
    iretq
fault_20:
    mov bl, 'v'
    mov eax, 3; TDCALL
    add qword ptr [rsp], 3
    iretq
"""


def on_qemu(hypervisor: Hypervisor, attributes: int) -> tuple[list[int], str]:
    """The registers of CPUID leaves 1 and 7, and what became of each bit."""
    guest = SmallTd(hypervisor, CODE, attributes=attributes)
    try:
        result = guest.run()
    finally:
        guest.td.teardown()
    assert result.reason is EndReason.POWER_OFF, result
    words, outcomes = guest.serial[:32], guest.serial[32:]
    return [int.from_bytes(words[at : at + 4], "little") for at in range(0, 32, 4)], outcomes.decode()


def on_script(platform: Platform, hypervisor: Hypervisor, attributes: int) -> tuple[list[int], str]:
    """The same from a script."""
    cpuid: list[int] = []
    outcomes: list[str] = []

    def program(_cpu: Script) -> Any:
        for leaf in (1, 7):
            cpuid.extend((yield Cpuid(leaf)))
        cr4 = (yield MovFromCr(4)) | x86.CR4_PAE
        for bit in BITS:
            try:
                yield MovToCr(4, cr4 | 1 << bit)
                outcomes.append("n")
            except GuestFault as fault:
                outcomes.append({x86.VECTOR_GP: "g", x86.VECTOR_VE: "v"}[fault.vector])
                if fault.vector == x86.VECTOR_VE:
                    yield Tdcall(rax=3)
            yield MovToCr(4, cr4)
        yield Tdcall(rax=0, rcx=0xFC00, r10=0, r11=0x10003, r12=0)

    platform.machine.engine.add_program(program)  # type: ignore[attr-defined]
    td = Td.build(hypervisor, TdConfig(attributes=attributes), [InitialPage(0x100000, b"")], ram=[])
    try:
        io = MachineIo(td, BoardConfig(apic_ids=(0,)), console_out=lambda _: None)
        result = io.runner(hypervisor.processors).run(600)
    finally:
        td.teardown()
    assert result.reason is EndReason.FATAL_ERROR, result
    return cpuid, "".join(outcomes)


@pytest.fixture(scope="module", params=["scripted", pytest.param("qemu", marks=pytest.mark.qemu)])
def host(request: pytest.FixtureRequest) -> Iterator[tuple[Platform, Hypervisor]]:
    machine = MachineConfig(engine=request.param, memory_bytes=512 << 20)
    with Platform.boot(PlatformConfig(machine=machine)) as built:
        yield built, Hypervisor(built.host)


@pytest.mark.parametrize("attributes", [0, ATTR_PKS], ids=["plain", "PKS"])
def test_every_bit_of_cr4(host: tuple[Platform, Hypervisor], attributes: int) -> None:
    platform, hypervisor = host
    if platform.machine.config.engine == "qemu":
        words, outcomes = on_qemu(hypervisor, attributes)
    else:
        words, outcomes = on_script(platform, hypervisor, attributes)

    def shown(leaf: int, _subleaf: int, register: int, bit: int) -> bool:
        return bool(words[register + (4 if leaf == 7 else 0)] >> bit & 1)

    expected = ["n" if bit in FEATURE and shown(*FEATURE[bit]) else "g" for bit in BITS]
    expected[8] = "n"  # PCE has no CPUID bit
    expected[13] = expected[14] = "v"
    assert outcomes == "".join(expected)
    assert (outcomes[24] == "n") == bool(attributes)
    assert {outcomes[bit] for bit in (7, 9, 16, 18, 20, 21, 22)} == {"n"}
