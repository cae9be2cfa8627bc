"""A tiny operating system for the root world, assembled here: it makes the SEAMCALLs that a table lists.

The table is what swtdx's own hypervisor does on a machine of the same make: :class:`Recorder` takes it down.
So machine code executes SEAMCALL after SEAMCALL, from TDH.SYS.INIT on, on as many processors as the
hypervisor used, and each must answer as it answered the hypervisor.

Each processor walks the table and carries out its own entries, when all before them have been done.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Final

from swtdx.machine.host import Host
from swtdx.machine.machine import Machine
from tests.assembler import assemble

#: An entry: what to do, on which processor, 8 operands; then what SEAMCALL left: 8 registers, RFLAGS.
ENTRY: Final = 256
END, CALL, COPY, ZERO, FLUSH, OFF = range(6)
REGISTERS: Final = (0, 1, 2, 8, 9, 10, 11, 12)
RESULTS: Final = 80
CODE, TABLE, CURSOR, AREAS, GDT, PAGES = 0x8000, 0x20000, 0x7000, 0x1000, 0x3000, 0x4000
DATA: Final = 0x80000
#: Written to this port, one byte: a processor is done.
DONE_PORT: Final = 0x600

_SOURCE: Final = f"""
        # RSI: this processor's number
        mov     rsp, rsi
        shl     rsp, 8
        add     rsp, 0x6200
        mov     rax, cr4
        or      rax, 0x2000
        mov     cr4, rax
        mov     rdi, rsi
        shl     rdi, 12
        add     rdi, {AREAS}                    # its VMXON region
        mov     ecx, 0x480
        rdmsr
        and     eax, 0x7FFFFFFF
        mov     [rdi], eax
        push    rdi
        vmxon   [rsp]
        pop     rdi
        jbe     failed
        mov     ebp, {TABLE}
next:   mov     eax, [rbp]
        cmp     dword ptr [rbp + 4], esi
        jne     others
        mov     ebx, ebp                        # all before it are done?
1:      cmp     [{CURSOR}], ebx
        je      2f
        pause
        jmp     1b
2:      push    rsi                             # TDH.VP.ENTER clears what is not an output, but RSP and RBP
        cmp     eax, {CALL}
        je      call_it
        cmp     eax, {COPY}
        je      copy
        cmp     eax, {ZERO}
        je      zero
        cmp     eax, {FLUSH}
        je      flush
        cmp     eax, {OFF}
        je      off
        jmp     done
call_it:
        mov     rax, [rbp + 8]
        mov     rcx, [rbp + 16]
        mov     rdx, [rbp + 24]
        mov     r8, [rbp + 32]
        mov     r9, [rbp + 40]
        mov     r10, [rbp + 48]
        mov     r11, [rbp + 56]
        mov     r12, [rbp + 64]
        stc
        .byte   0x66, 0x0F, 0x01, 0xCF          # SEAMCALL
        pushfq
        pop     qword ptr [rbp + {RESULTS} + 64]
        mov     [rbp + {RESULTS}], rax
        mov     [rbp + {RESULTS} + 8], rcx
        mov     [rbp + {RESULTS} + 16], rdx
        mov     [rbp + {RESULTS} + 24], r8
        mov     [rbp + {RESULTS} + 32], r9
        mov     [rbp + {RESULTS} + 40], r10
        mov     [rbp + {RESULTS} + 48], r11
        mov     [rbp + {RESULTS} + 56], r12
        jmp     done
copy:   mov     rdi, [rbp + 8]
        mov     rsi, [rbp + 16]
        mov     rcx, [rbp + 24]
        rep movsb
        jmp     done
zero:   mov     rdi, [rbp + 8]
        mov     rcx, [rbp + 16]
        shr     rcx, 3
        xor     eax, eax
        rep stosq
        jmp     done
flush:  wbinvd
        jmp     done
off:    vmxoff
        jbe     failed
done:   pop     rsi
        mov     eax, [rbp]
        add     ebp, {ENTRY}
        mov     [{CURSOR}], ebp
        cmp     eax, {END}
        jne     next
        mov     al, 1
        jmp     tell
others: add     ebp, {ENTRY}
        jmp     next
failed: mov     al, 0xEE
tell:   mov     dx, {DONE_PORT}
        out     dx, al
3:      hlt
        jmp     3b
"""


@dataclass
class Step:
    """One entry; of a SEAMCALL, also what it answered the hypervisor."""

    kind: int
    lp: int
    operands: tuple[int, ...] = ()
    data: bytes = b""
    answer: tuple[int, ...] = ()


@dataclass
class Recorder:
    """Takes down what a hypervisor does on ``host``."""

    host: Host
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        for lp in self.host.processors:
            self._watch(lp._lp)
        memory: Any = self.host.memory
        write, clear = memory.write, memory.clear

        def noted_write(pa: int, data: bytes) -> None:
            self.steps.append(Step(COPY, 0, (pa,), bytes(data)))
            write(pa, data)

        def noted_clear(pa: int, size: int) -> None:
            self.steps.append(Step(ZERO, 0, (pa, size)))
            clear(pa, size)

        memory.write, memory.clear = noted_write, noted_clear
        host: Any = self.host
        flush = host.wbinvd

        def noted_flush(package: int) -> None:
            self.steps.append(Step(FLUSH, 0))
            flush(package)

        host.wbinvd = noted_flush

    def _watch(self, lp: Any) -> None:
        seamcall = lp.seamcall

        def noted() -> None:
            before = tuple(lp.gpr[number] for number in REGISTERS)
            seamcall()
            answer = tuple(lp.gpr[number] for number in REGISTERS)
            self.steps.append(Step(CALL, lp.index, before, answer=answer))

        lp.seamcall = noted


class Image:
    """The tiny operating system in the memory of ``machine``, for ``steps``."""

    def __init__(self, machine: Machine, steps: list[Step]) -> None:
        self._machine = machine
        processors = range(len(machine.processors))
        self.steps = [step for step in steps if step.kind != END]
        self.steps += [Step(END, lp) for lp in processors]
        memory = machine.memory
        table, data = bytearray(), bytearray()
        for step in self.steps:
            operands = list(step.operands)
            if step.kind == COPY:
                operands += [DATA + len(data), len(step.data)]
                data += step.data
            table += struct.pack("<II8Q", step.kind, step.lp, *operands, *[0] * (8 - len(operands))).ljust(
                ENTRY, b"\0"
            )
        assert TABLE + len(table) <= DATA, len(table)
        assert DATA + len(data) <= 0xA0000, len(data)
        memory.write(CODE, assemble(_SOURCE, 64, CODE))
        memory.write(TABLE, bytes(table))
        memory.write(DATA, bytes(data))
        memory.write(CURSOR, struct.pack("<I", TABLE))
        memory.write(GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        memory.write(PAGES, struct.pack("<Q", PAGES + 0x1003))
        memory.write(PAGES + 0x1000, struct.pack("<4Q", *(number << 30 | 0x83 for number in range(4))))

    def answers(self) -> list[tuple[Step, tuple[int, ...], int]]:
        """Each SEAMCALL with the registers that it left, and RFLAGS."""
        found = []
        for number, step in enumerate(self.steps):
            if step.kind == CALL:
                raw = self._machine.memory.read(TABLE + number * ENTRY + RESULTS, 72)
                *registers, flags = struct.unpack("<9Q", raw)
                found.append((step, tuple(registers), flags))
        return found
