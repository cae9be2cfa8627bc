"""An operating system of a few instructions in the root world: from VMXON and TDH.SYS.INIT to a TD's exit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swtdx.arch import status as st
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.machine.machine import MachineConfig
from swtdx.machine.root.world import RootWorld
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.assembler import assemble
from tests.root.host_image import (
    CALL,
    CODE,
    DONE_PORT,
    GDT,
    OFF,
    PAGES,
    REGISTERS,
    Image,
    Recorder,
    Step,
)

pytestmark = pytest.mark.qemu

MEMORY = 256 << 20
VP_ENTER = HOST_BY_NAME["TDH.VP.ENTER"].number
#: The tail of the TD's memory, where a vCPU starts: a TDVMCALL that tells its number, from 64-bit code.
RESET = 0xFFFFF000
TD_CODE = """
        .org 0
        .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtp:   .word 23
        .long 0xFFFFF000
        .org 0x800
start:  lgdt [gdtp]
        mov eax, cr4
        or eax, 0x620
        mov cr4, eax
        mov eax, 0xFFFFE000
        mov cr3, eax
        mov eax, cr0
        or eax, 0x80000001
        mov cr0, eax
        .byte 0xEA
        .long long
        .word 8
        .code64
long:   mov r10d, 0x1234                        # a vendor's TDVMCALL
        mov r11d, esi
        mov r12d, 0x5678
        xor eax, eax
        mov ecx, 0x1C00
        .byte 0x66, 0x0F, 0x01, 0xCC            # TDCALL
        mov r11d, 0x99
        xor eax, eax
        mov ecx, 0x1C00
        .byte 0x66, 0x0F, 0x01, 0xCC
1:      jmp 1b
        .org 0xFF0
        .code32
        jmp start
        .org 0x1000
"""


def _config(processors: int, engine: str) -> PlatformConfig:
    machine = MachineConfig(processors_per_package=processors, memory_bytes=MEMORY, engine=engine)
    return PlatformConfig(machine=machine)


def _td_pages() -> list[InitialPage]:
    code = assemble(TD_CODE, 32, RESET)
    table = (0xFFFFD000 | 3).to_bytes(8, "little")
    directory = b"".join((number << 30 | 0x83).to_bytes(8, "little") for number in range(4))
    return [
        InitialPage(0xFFFFD000, directory),
        InitialPage(0xFFFFE000, table),
        InitialPage(RESET, code),
    ]


def record(processors: int) -> list[Step]:
    """What swtdx's hypervisor does until its TD, with a vCPU for each processor, is ready to run."""
    with Platform.boot(_config(processors, "scripted")) as platform:
        recorder = Recorder(platform.host)
        td = Td.build(Hypervisor(platform.host), TdConfig(vcpus=processors), _td_pages())
        steps = list(recorder.steps)
        for vcpu in td.vcpus:
            steps += [Step(CALL, vcpu.index, (VP_ENTER, vcpu.tdvpr, *[0] * 6))] * 2
        return steps


class Done:
    """The port at which each processor says that it is done."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.values: list[int] = []
        self._stop = stop

    def read(self, port: int, size: int) -> int:
        return 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        self.values.append(value)
        self._stop()


def play(platform: Platform, steps: list[Step]) -> tuple[Image, list[RootWorld], list[int]]:
    """Let machine code do ``steps``."""
    machine = platform.machine
    image = Image(machine, steps)
    worlds: list[RootWorld] = []
    done: list[int] = []
    machine.engine.stop_at_ports([DONE_PORT])  # type: ignore[attr-defined]
    for lp in machine.processors:
        world = RootWorld(lp, ())
        port = Done(world.stop)
        port.values = done
        world.ports = port
        world.start(CODE, page_table=PAGES, gdt=GDT, rsi=lp.index)
        worlds.append(world)

    def failed(error: BaseException) -> None:
        for world in worlds:
            world.stop()

    machine.together({world.lp.index: world.run for world in worlds}, failed)
    return image, worlds, done


@pytest.mark.parametrize("processors", [1, 2])
def test_machine_code_makes_a_td_as_the_hypervisor_does(processors: int) -> None:
    steps = record(processors)
    steps += [Step(OFF, lp) for lp in range(processors)]
    with Platform.boot(_config(processors, "qemu-root")) as platform:
        image, _, done = play(platform, steps)
        assert done == [1] * processors
        answers = image.answers()
        calls = [step for step in steps if step.kind == CALL]
        assert len(answers) == len(calls) > 100
        for number, (step, registers, flags) in enumerate(answers):
            leaf = step.operands[0] & 0xFFFF
            assert flags & 0x8D5 == 0, f"call {number}, leaf {leaf}"
            if step.answer and leaf != HOST_BY_NAME["TDH.MNG.RD"].number:  # which reads the TSC's offset
                assert registers == step.answer, f"call {number}, leaf {leaf}"
        entered = [registers for step, registers, _ in answers if step.operands[0] == VP_ENTER]
        at = {register: place for place, register in enumerate(REGISTERS)}
        for vcpu in range(processors):
            first, second = entered[2 * vcpu : 2 * vcpu + 2]
            assert first[at[0]] & 0xFFFFFFFF_0000FFFF == st.TDX_SUCCESS | 77  # TDCALL
            assert first[at[10]] == 0x1234
            assert first[at[11]] == vcpu
            assert first[at[12]] == 0x5678
            assert second[at[11]] == 0x99
