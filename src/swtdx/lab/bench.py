"""The attacker's bench: a machine, its hypervisor, a victim TD, and what software outside SEAM can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from swtdx.arch import ghci
from swtdx.arch import status as st
from swtdx.arch.exits import ExitReason
from swtdx.arch.metadata import Context, by_name
from swtdx.arch.regs import R10
from swtdx.lab.attempt import Attempt
from swtdx.lab.victim import Victim
from swtdx.machine.faults import ProcessorFault
from swtdx.machine.machine import MachineConfig
from swtdx.machine.memory import MemoryFault, Requestor
from swtdx.machine.memory.dram import Dram
from swtdx.platform import Platform, PlatformConfig
from swtdx.trace.names import status_text
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.processor import Processor


class Impossible(RuntimeError):
    """A step that the module has to allow on the way to an attack was refused."""


class Bench:
    """One attack's world.  ``close`` frees it; also a context manager.

    The attacker is the hypervisor: ``cpu`` and ``other`` are its processors, whose registers are its own.
    ``dram`` is the probe of an attacker who stands in front of the machine.
    ``attempts`` is what it has tried.
    """

    def __init__(self, seed: bytes = b"swtdx") -> None:
        machine = MachineConfig(engine="scripted", processors_per_package=2, seed=seed)
        self.seed = seed
        self.platform = Platform.boot(PlatformConfig(machine=machine))
        self.machine = self.platform.machine
        self.hypervisor = Hypervisor(self.platform.host)
        self.cpu, self.other = self.hypervisor.processors
        self.dram = Dram(self.machine.memory)
        self.attempts: list[Attempt] = []
        #: The victim is dead as a result of the attack, which is no harm to its secrets: it is not asked.
        self.dead = False
        self.victim = Victim(self.hypervisor, self.machine.engine, seed)
        rax = self.victim.enter()
        assert rax == ExitReason.TDCALL, f"the victim did not come up: {rax:#x}"
        self.cpu.gpr[R10] = ghci.SUCCESS
        #: The registers after the last :meth:`call`.
        self.answer: list[int] = []

    # ------------------------------------------------------------------ where things are
    @property
    def tdr(self) -> int:
        """HPA of the victim's root page."""
        return self.victim.td.root

    @property
    def hkid(self) -> int:
        """The victim's HKID."""
        assert self.victim.td.hkid is not None
        return self.victim.td.hkid

    def keyed(self, hpa: int, keyid: int | None = None) -> int:
        """A physical address with a KeyID in it, the victim's by default."""
        return self.machine.memory.addresses.join(hpa, self.hkid if keyid is None else keyid)

    def page(self) -> int:
        """HPA of a free page of the attacker's."""
        return self.hypervisor.allocator.page("attacker")

    def second_td(self, name: str = "accomplice", code: bytes | None = None) -> Victim:
        """Another TD, that the attacker has built; with the victim's code, or ``code``."""
        other = Victim(self.hypervisor, self.machine.engine, self.seed, name, code)
        other.enter()
        self.cpu.gpr[R10] = ghci.SUCCESS
        return other

    @staticmethod
    def field(context: Context, name: str) -> int:
        """A metadata field's identifier."""
        return by_name(context, name).id

    # ------------------------------------------------------------------ attempts
    def call(self, leaf: str, cpu: Processor | None = None, /, **registers: int) -> int:
        """One SEAMCALL, once; RAX.  The victim's registers for its next entry stay as they are."""
        status, self.answer = (cpu or self.cpu).aside(leaf, **registers)
        return status

    def attempt(self, leaf: str, what: str, cpu: Processor | None = None, /, **registers: int) -> int:
        """A SEAMCALL that must be refused; RAX."""
        status = self.call(leaf, cpu, **registers)
        operands = tuple((name.upper(), value) for name, value in registers.items())
        refused = st.is_error(status)
        self.attempts.append(Attempt(f"{leaf} {what}", status_text(status), refused, status, operands))
        return status

    def must(self, leaf: str, cpu: Processor | None = None, /, **registers: int) -> int:
        """A SEAMCALL that an attack needs on its way, and that the module allows; RAX.

        Raises:
            Impossible: it fails, so that the attack cannot be tried.
        """
        status = self.call(leaf, cpu, **registers)
        if st.is_error(status):
            raise Impossible(f"on the way to the attack, {leaf} gave {status_text(status)}")
        return status

    def note(self, what: str, answer: str, refused: bool, status: int | None = None) -> None:
        """Write an attempt down."""
        self.attempts.append(Attempt(what, answer, refused, status))

    def read(self, pa: int, size: int = 64, who: Requestor = Requestor.HOST) -> bytes | MemoryFault:
        """Memory as the hypervisor, or a device, gets it; the fault if there is one."""
        try:
            return self.machine.memory.read(pa, size, who)
        except MemoryFault as fault:
            return fault

    def attempt_read(
        self, what: str, pa: int, harmless: bytes | None = None, who: Requestor = Requestor.HOST
    ) -> None:
        """Read 64 bytes that must not come: a fault, or only ``harmless`` bytes (zeros)."""
        found = self.read(pa, 64, who)
        if isinstance(found, MemoryFault):
            self.note(f"{what} at {pa:#x}", str(found).split(":")[0], True)
            return
        expected = bytes(64) if harmless is None else harmless
        answer = "zeros" if found == bytes(64) else "all ones" if found == b"\xff" * 64 else found[:16].hex()
        self.note(f"{what} at {pa:#x}", answer, found == expected)

    def attempt_instruction(self, what: str, action: Callable[[], str | None]) -> None:
        """Something that the processor must refuse: by a fault, or by a result that ``action`` returns.

        None from ``action`` says that it was done.
        """
        try:
            answer = action()
        except (ProcessorFault, MemoryFault) as fault:
            self.note(what, f"{type(fault).__name__}: {fault}", True)
            return
        self.note(what, answer or "done", answer is not None)

    def while_it_runs(self, action: Callable[[], None]) -> int:
        """Run the victim, and carry ``action`` out while it is in the guest; RAX of its TDH.VP.ENTER.

        The action can use every processor but ``cpu``, which is inside the SEAMCALL.

        Raises:
            Impossible: the victim does not run.
        """
        done: list[bool] = []

        def meanwhile() -> None:
            action()
            done.append(True)

        self.victim.meanwhile = meanwhile
        rax = self.victim.enter()
        self.cpu.gpr[R10] = ghci.SUCCESS
        if not done:
            raise Impossible("the victim did not get to run")
        return rax

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Switch the machine off."""
        self.platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
