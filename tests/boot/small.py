"""Guests of a few instructions as TDs on QEMU: assembled here, run in this process, no kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import swtdx.guests
from swtdx.devices.board import BoardConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.processor import Processor
from swtdx.vmm.result import RunResult
from swtdx.vmm.run import Runner
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.assembler import assemble

SHIM: Final = Path(swtdx.guests.__file__).parent / "shim"
PAGE: Final = 4096
CODE: Final = 0xFFFFC000
#: Three page tables, and four pages of memory with a stack at their end.
TABLES: Final = 0xFFFF0000
DATA: Final = 0xFFFF4000
DATA_END: Final = DATA + 4 * PAGE
RAM: Final = 2 << 20
RAM_END: Final = 16 << 20

#: Gates for #GP and #VE, to the guest's labels fault_13 and fault_20, in the table that RDI points to.
FAULT_GATES: Final = """
    .irp vector, 13, 20
    mov eax, offset fault_\\vector
    mov [rdi + 16 * \\vector], ax
    mov word ptr [rdi + 16 * \\vector + 2], BOOT_CS
    mov word ptr [rdi + 16 * \\vector + 4], 0x8e00
    shr eax, 16
    mov [rdi + 16 * \\vector + 6], ax
    .endr
"""
#: From reset to 64-bit mode with the macros of our own shim; then the guest's own code, and calls for it.
_FRAME: Final = f"""
    .include "{SHIM}/abi.inc"
    .include "{SHIM}/long_mode.inc"
    .set pml4, {TABLES}
    .set pdpt, {TABLES + PAGE}
    .set shared_pdpt, {TABLES + 2 * PAGE}
    .set data, {DATA}
    .code32
start:
    BUILD_PAGE_TABLES 0
    ENTER_LONG_MODE start64
    .code64
start64:
    LOAD_DATA_SEGMENTS
    mov esp, {DATA_END}
    GUEST
power_off:
    mov r14d, 0x605
    mov r15d, 0x20
    call out_byte
    ud2
    # The byte AL on the serial port.
put:
    movzx r15d, al
    mov r14d, 0x3f8
out_byte:
    mov r11d, VMCALL_IO
    mov r12d, 1
    mov r13d, 1
vmcall:
    xor r10d, r10d
vmcall_r10:
    mov ecx, PASS_R10_TO_R15
    xor eax, eax
    TDCALL
    ret
    # ECX bytes from RSI on on the serial port.
put_all:
    mov ebx, ecx
1:  lodsb
    call put
    dec ebx
    jnz 1b
    ret
    DEFINE_GDT
    .org 0x3ff0
    .code32
    jmp start
    .org 0x4000
"""


class SmallTd:
    """A TD that runs ``code`` (64-bit, Intel syntax; may fall through to a power-off).

    Args:
        ram: [start, end) GPAs where it gets private memory on demand.
        heard: told of every byte on the serial port.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        code: str,
        processors: list[Processor] | None = None,
        *,
        ram: list[tuple[int, int]] | None = None,
        heard: Callable[[bytes], None] = lambda _: None,
        **config: Any,
    ) -> None:
        image = assemble(_FRAME.replace("GUEST", code), 32, CODE)
        assert len(image) == 0x4000
        places = {CODE + at: image[at : at + PAGE] for at in range(0, len(image), PAGE)}
        places |= dict.fromkeys(range(TABLES, DATA_END, PAGE), b"")
        self.hypervisor = hypervisor
        self.serial = bytearray()
        self._heard = heard
        self.td = Td.build(
            hypervisor,
            TdConfig(**config),
            [InitialPage(gpa, data) for gpa, data in places.items()],
            ram=[(RAM, RAM_END)] if ram is None else ram,
            processors=processors,
        )
        self.io = MachineIo(
            self.td,
            BoardConfig(apic_ids=tuple(range(len(self.td.vcpus)))),
            console_out=lambda _: None,
            serial_out=self._hear,
        )
        self.runner = self._runner(processors)

    def _runner(self, processors: list[Processor] | None) -> Runner:
        return self.io.runner(processors or self.hypervisor.processors)

    def _hear(self, data: bytes) -> None:
        self.serial += data
        self._heard(data)

    def move(self, processors: list[Processor]) -> None:
        """From now on it runs on other processors (TDH.VP.FLUSH where it was)."""
        self.runner = self._runner(processors)

    def run(self, timeout: float | None = 60) -> RunResult:
        return self.runner.run(timeout)
