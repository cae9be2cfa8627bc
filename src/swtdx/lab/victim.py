"""The victim: a TD that keeps a secret in its registers and in its memory, and knows when it was touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from swtdx.arch import ghci
from swtdx.arch.exits import ExitReason, ExtendedQualification
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.arch.regs import R8, R9, R10, R11, R12, R13, R14, R15, RBP, RBX, RCX, RDI, RDX, RSI
from swtdx.arch.units import MASK64, PAGE
from swtdx.machine.engine.protocol import EngineError
from swtdx.machine.engine.scripted import Pause, Read, Script, Tdcall, Write
from swtdx.machine.random import derive
from swtdx.vmm.exits import EptViolation
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.private_memory import Verdict
from swtdx.vmm.processor import Processor
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

CODE: Final = 0x10_0000
RAM: Final = 0x400_0000
RAM_END: Final = RAM + (4 << 20)
#: Where the secret is, and how many 8-byte words it has.
WORDS: Final = 8
SECOND: Final = RAM + PAGE
#: Registers that hold the secret while the victim is away; a TDVMCALL with the usual mask passes none.
KEEPERS: Final = (RBX, RBP, RSI, RDI, R8, R9)
#: The port on which the victim reports: 0x80, where a BIOS puts its POST codes.
PORT: Final = 0x80
SOUND: Final = 0x600D
_ACCEPT: Final = GUEST_BY_NAME["TDG.MEM.PAGE.ACCEPT"].number
_TDCALL: Final = int(ExitReason.TDCALL)
_EPT_VIOLATION: Final = int(ExitReason.EPT_VIOLATION)
_INTERRUPT: Final = int(ExitReason.EXTERNAL_INTERRUPT)


def secret_words(seed: bytes, label: str, count: int = WORDS) -> list[int]:
    """``count`` random 64-bit words, none of them small."""
    data = derive(seed, f"secret of {label}", 8 * count)
    return [int.from_bytes(data[8 * n : 8 * n + 8], "little") | 1 << 63 for n in range(count)]


class Victim:
    """The TD.  Its vCPU is entered by hand, by :meth:`enter`: the hypervisor of the lab has no run loop."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        engine: Any,
        seed: bytes,
        name: str = "victim",
        code: bytes | None = None,
    ) -> None:
        self.name = name
        self.secret = secret_words(seed, name)
        #: What the victim found in its registers and memory that it had not put there.
        self.damage: list[str] = []
        #: Called once, from another processor's point of view, while the vCPU is in the guest.
        self.meanwhile: Callable[[], None] | None = None
        self.script: Script = engine.add_program(self._program)
        self.code = derive(seed, "code of the victim", PAGE) if code is None else code
        self.td = Td.build(
            hypervisor, TdConfig(), [InitialPage(CODE, self.code)], ram=[(RAM, RAM_END)], name=name
        )

    # ------------------------------------------------------------------ in the guest
    def _program(self, cpu: Script) -> Any:
        for gpa in (RAM, SECOND):
            yield Tdcall(rax=_ACCEPT, rcx=gpa)
        for number, word in enumerate(self.secret):
            yield Write(RAM + 8 * number, word)
            yield Write(SECOND + 8 * number, word ^ MASK64)
        while True:
            for register, word in zip(KEEPERS, self.secret, strict=False):
                cpu.gpr[register] = word
            verdict = len(self.damage) or SOUND
            yield Tdcall(rax=0, rcx=ghci.BASIC_MASK, r10=0, r11=ghci.IO, r12=4, r13=1, r14=PORT, r15=verdict)
            self._look_at_registers(cpu)
            # Time in which an interrupt can come, with the secret in every register that holds one.
            yield Pause(100_000)
            self._look_at_registers(cpu)
            # The scripted engine runs this code between two instructions of the guest.
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            for number, word in enumerate(self.secret):
                self._expect((yield Read(RAM + 8 * number)), word, f"GPA {RAM + 8 * number:#x}")
                self._expect(
                    (yield Read(SECOND + 8 * number)), word ^ MASK64, f"GPA {SECOND + 8 * number:#x}"
                )

    def _look_at_registers(self, cpu: Script) -> None:
        for register, word in zip(KEEPERS, self.secret, strict=False):
            self._expect(cpu.gpr[register], word, f"register {register}")

    def _expect(self, value: int, word: int, where: str) -> None:
        if value != word:
            self.damage.append(f"{where} holds {value:#x}")

    # ------------------------------------------------------------------ from outside
    @property
    def tdvpr(self) -> int:
        """HPA of its vCPU's root page."""
        return self.td.vcpus[0].tdvpr

    def hpa(self, gpa: int = RAM) -> int:
        """Where the hypervisor has put the page of ``gpa``."""
        return self.td.private.small[gpa]

    def enter(self, cpu: Processor | None = None) -> int:
        """Run until the next TDVMCALL or an exit that is not the hypervisor's everyday work; RAX.

        Memory is given on demand, as to any TD; an EPT violation for which there is none to give ends it.
        """
        cpu = cpu or self.td.cpu
        while True:
            cpu.gpr[RCX] = self.tdvpr
            rax = cpu.call_once(0)
            pending = cpu.gpr[RDX] & 0xF == ExtendedQualification.PENDING_EPT_VIOLATION
            if rax == _EPT_VIOLATION and not pending:
                violation = EptViolation(cpu.gpr[RCX], cpu.gpr[RDX], cpu.gpr[R8])
                verdict = self.td.private.resolve(cpu, violation.gpa, violation.accept_level)
                if verdict is Verdict.RESOLVED:
                    continue
            if rax == _INTERRUPT:
                cpu.take_interrupts()
            return rax

    def report(self) -> str:
        """Ask the victim whether all is well; what is wrong, in words, or nothing."""
        cpu = self.td.cpu
        for _ in range(2):
            try:
                rax = self.enter()
                if rax == _INTERRUPT:
                    rax = self.enter()
            except EngineError as error:
                return f"the victim is not where it was: {error}"
            if rax != _TDCALL:
                return f"the victim does not answer: TDH.VP.ENTER gives {rax:#x}"
            cpu.gpr[R10] = ghci.SUCCESS
        if self.damage:
            return f"the victim noticed: {self.damage[0]}"
        got = [cpu.gpr[n] for n in (R11, R12, R13, R14, R15)]
        if got != [ghci.IO, 4, 1, PORT, SOUND]:
            return f"the victim says {got[-1]:#x}"
        return ""

    def leaked(self, registers: list[int]) -> bool:
        """Whether a register file holds a word of the secret."""
        words = {*self.secret, *(word ^ MASK64 for word in self.secret)}
        return any(value in words for value in registers)
