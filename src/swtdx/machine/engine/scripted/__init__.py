"""The scripted engine: guests that are Python generators.

A program gets its :class:`Script` and yields operations; the ``yield`` returns what they gave::

    def guest(cpu):
        eax, ebx, ecx, edx = yield Cpuid(0x21)
        after = yield Tdcall(rax=1)                  # TDG.VP.INFO
        try:
            yield Read(0x8000_0000, 4)
        except GuestFault as fault:                  # #VE, #GP, ...
            ...

    script = machine.engine.add_program(guest)
"""

from swtdx.machine.engine.scripted.accesses import Fetch, Read, Write, read_bytes, write_bytes
from swtdx.machine.engine.scripted.control import (
    Cli,
    Clts,
    Iret,
    MovFromCr,
    MovToCr,
    Pause,
    SetCpl,
    Sti,
    Xsetbv,
)
from swtdx.machine.engine.scripted.engine import ScriptedEngine
from swtdx.machine.engine.scripted.faults import GuestFault, ScriptError
from swtdx.machine.engine.scripted.instructions import (
    Cpuid,
    Hlt,
    Invd,
    Monitor,
    Mwait,
    Rdmsr,
    Rdpmc,
    Rdtsc,
    Rdtscp,
    Tdcall,
    TripleFault,
    Undefined,
    Vmcall,
    Wbinvd,
    Wrmsr,
)
from swtdx.machine.engine.scripted.operation import Operation, Registers, sequence
from swtdx.machine.engine.scripted.ports import In, Out
from swtdx.machine.engine.scripted.script import Program, Script

__all__ = [
    "Cli", "Clts", "Cpuid", "Fetch", "GuestFault", "Hlt", "In", "Invd", "Iret", "Monitor", "MovFromCr",
    "MovToCr", "Mwait", "Operation", "Out", "Pause", "Program", "Rdmsr", "Rdpmc", "Rdtsc", "Rdtscp", "Read",
    "Registers", "Script", "ScriptError", "ScriptedEngine", "SetCpl", "Sti", "Tdcall", "TripleFault",
    "Undefined", "Vmcall", "Wbinvd", "Write", "Wrmsr", "Xsetbv", "read_bytes", "sequence",
    "write_bytes",
]  # fmt: skip
