"""A machine on the conformance suite's bench: SEAMCALLs by name, pages to give away, locks to hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

from swtdx.arch import regs, status
from swtdx.arch.exits import ExitReason
from swtdx.arch.features import ModuleFeatures
from swtdx.arch.layout import Field
from swtdx.arch.leaf import Kind, Leaf
from swtdx.arch.leaves import BY_NAME, HOST_LEAVES
from swtdx.arch.regs import RAX, RDX
from swtdx.arch.sept_bits import HPA, TDEL
from swtdx.arch.units import GIB, LARGE_PAGE, PAGE
from swtdx.machine.cpu.model import DEFAULT_MODEL
from swtdx.machine.engine.scripted import Program, Script, Tdcall
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig, module_image
from swtdx.proof.conformance.registers import wrong_registers
from swtdx.proof.conformance.registry import Case, Defect, Mend, status_text
from swtdx.proof.probe import ModuleProbe, Place

#: The one TDMR, its PAMTs, and the hypervisor's own buffers.
TDMR: Final = 4 * GIB
PAMT_4K: Final = 0x2000_0000
PAMT_2M: Final = PAMT_4K + (4 << 20)
PAMT_1G: Final = PAMT_2M + (8 << 10)
BUFFERS: Final = 0x2800_0000
#: Memory that no TDMR covers.
OUTSIDE: Final = 0x3000_0000
#: What registers hold that a case does not set: odd values that no leaf takes for something.
_FILL: Final = tuple(0xF111_0000_0000_0F1F + (number << 32) for number in range(16))
#: RAX after a TDVMCALL: SUCCESS and the exit reason TDCALL.
_TDCALL_REASON: Final = ExitReason.TDCALL.value
_SHARE: Final = 4  # one reader of a lock with host priority


class Wrong(AssertionError):
    """The module did not do what its tables say."""


class Incompatible(Exception):
    """A defect cannot be put on top of a case's call; ``absent``: what it is about is not there."""

    def __init__(self, why: str, *, absent: bool = False) -> None:
        super().__init__(why)
        self.absent = absent


@dataclass(slots=True)
class Td:
    """A TD under construction: addresses of its pages (HPA), and what was added."""

    tdr: int
    hkid: int
    tdcx: list[int] = field(default_factory=list)
    tdvpr: int = 0
    vpcx: list[int] = field(default_factory=list)
    #: Secure EPT pages by (GPA, level of the entry that points to it).
    sept: dict[tuple[int, int], int] = field(default_factory=dict)
    #: Pages by GPA.
    pages: dict[int, int] = field(default_factory=dict)


class World:
    """One machine.  ``close`` frees it; also a context manager.

    ``features`` are those of its module, swtdx's own by default; ``part`` is the model of its processors.
    """

    def __init__(self, features: ModuleFeatures | None = None, part: str = DEFAULT_MODEL) -> None:
        config = MachineConfig(
            packages=2, processors_per_package=1, engine="scripted", options={"model": part}
        )
        module = None if features is None else module_image(features=features)
        self.platform = Platform.boot(PlatformConfig(machine=config, module=module))
        self.machine = self.platform.machine
        self.memory = self.platform.host.memory
        #: Where the module keeps what no call shows.
        self.probe = ModuleProbe(self.machine)
        #: Physical address bits below the KeyID.
        self.hpa_bits = self.machine.memory.addresses.hpa_bits
        self.lps = self.machine.processors
        for lp in self.platform.host.processors:
            with contextlib.suppress(GeneralProtection):
                lp.vmxon()
        self.first_hkid = self.platform.host.shared_keyids + 1
        self.hkids = self.platform.host.private_keyids
        self._next_hkid = self.first_hkid + 1
        self._next_page = TDMR
        self._next_large = TDMR + GIB // 2
        self._next_buffer = BUFFERS
        self._case: Case | None = None
        #: What is wrong besides, with the operands that it changes, and the status that is to come.
        self._defect: Defect | None = None
        self._mended: tuple[Mend, int] | None = None
        self._changes: dict[str, int] = {}
        self._value = 0
        self._answered = False
        #: The processor that makes the call.
        self.calling = 0
        self._provoked = 0
        #: What cases note about this world: the stage's TD is torn down; an HKID waits for the caches;
        #: what is blocked (GPA, level).
        self.torn = False
        self.waiting = False
        self.blocked: set[tuple[int, int]] = set()
        #: The TD of the stage.
        self.td = Td(0, 0)

    # ------------------------------------------------------------------ calls
    def call(
        self,
        leaf: str | int,
        *,
        lp: int = 0,
        version: int = 0,
        rax: int = 0,
        **operands: int,
    ) -> list[int]:
        """SEAMCALL; the registers after it.  All registers that are not given hold odd values.

        ``rax`` are more bits of RAX, besides leaf and version.

        Raises:
            Wrong: a register that the leaf's table does not name changed, or one is wrong after an error.
        """
        return self._seamcall(leaf, operands, lp=lp, version=version, rax=rax)

    def _seamcall(
        self,
        leaf: str | int,
        operands: dict[str, int],
        *,
        lp: int,
        version: int,
        rax: int,
        outputs: bool = True,
    ) -> list[int]:
        processor = self.platform.host.processors[lp]
        number = BY_NAME[leaf].number if isinstance(leaf, str) else leaf
        gpr = list(_FILL)
        gpr[RAX] = number | version << 16 | rax
        regs.put(gpr, operands)
        processor.gpr[:] = gpr
        if not processor.seamcall():
            raise Wrong(f"leaf {number}: VMfailInvalid, nobody answered")
        after = list(processor.gpr)
        row = HOST_LEAVES.get(number)
        if row is not None and number != 0:
            wrong = wrong_registers(row, min(version, row.max_version), gpr, after, outputs=outputs)
            if wrong:
                raise Wrong(f"{row.name} with {status_text(after[RAX])}: {'; '.join(wrong)}")
        return after

    def ok(self, leaf: str, **operands: int) -> list[int]:
        """:meth:`call`, which must succeed (or say that there is nothing to do).

        Raises:
            Wrong: it fails.
        """
        after = self.call(leaf, **operands)
        if status.is_error(after[RAX]):
            raise Wrong(f"while setting up, {leaf} gave {status_text(after[RAX])}")
        return after

    # ------------------------------------------------------------------ the case
    def run(self, case: Case) -> None:
        """Run a case in this world, which must be at its stage.

        Raises:
            Wrong: the call that it provokes with does not do as the case says.
        """
        self._case, self._provoked, self._value, self.calling = case, 0, case.value, 0
        case.action(self)
        if self._provoked != 1:
            raise Wrong(f"the case calls {case.leaf} {self._provoked} times for its status, not once")
        self._case = None

    def run_with(self, case: Case, defect: Defect, value: int, *, apply: bool = True) -> None:
        """Run a case whose call has another defect, too; ``value`` is what must come of it.

        ``apply`` False: the defect's operands are made, but not used.

        Raises:
            Wrong: something else comes of it.
            Incompatible: the defect would be one of another call.
        """
        try:
            self._changes = {name: v if isinstance(v, int) else v(self) for name, v in defect.changes.items()}
        except Exception as error:
            raise Incompatible(f"the operands of one cannot be made: {error}") from error
        self._defect = defect if apply else None
        self._case, self._provoked, self._value, self._answered = case, 0, value, False
        try:
            case.action(self)
        except AssertionError as wrong:
            if not self._provoked:
                raise Incompatible(f"one cannot be prepared with the other: {wrong}") from wrong
            if not self._answered:
                raise
            # The status is right; what else the case looks at belongs to its own.
        finally:
            self._defect = self._case = None
        if self._provoked != 1:
            raise Incompatible("one is not provoked by a call of its own")

    def run_mended(self, case: Case, mend: Mend, value: int) -> None:
        """Run a case, put its defect right, and make its call again, which must give ``value`` then.

        Raises:
            Wrong: it gives something else.
            Incompatible: the defect could not be put right.
        """

        def mended(world: World, operands: dict[str, int]) -> None:
            try:
                mend(world, operands)
            except Exception as error:
                raise Incompatible(f"one cannot be put right: {error}") from error

        self._mended = mended, value
        try:
            self.run(case)
        finally:
            self._mended = self._case = None

    @contextlib.contextmanager
    def _spoilt(self, operands: dict[str, int]) -> Iterator[int]:
        """The call with the defect on top: its operands change; the further bits of RAX."""
        defect = self._defect
        if defect is None:
            yield 0
            return
        operands |= self._changes
        for name, bits in defect.bits.items():
            operands[name] |= bits
        with contextlib.ExitStack() as stack:
            if defect.hold is not None:
                try:
                    stack.enter_context(defect.hold(self, operands))
                except Exception as error:
                    why = "what the one check looks at is not there for the other"
                    raise Incompatible(why, absent=True) from error
            yield defect.rax

    def provoke(self, *, lp: int = 0, version: int = 0, rax: int = 0, **operands: int) -> list[int]:
        """The call that the case is about; the registers after it.

        Raises:
            Wrong: RAX, or another register, is not as it should be.
        """
        assert self._case is not None
        row = BY_NAME[self._case.leaf]
        self.calling = lp
        with self._spoilt(operands) as more:
            self._provoked += 1
            outputs = self._case.outputs and self._defect is None
            version, rax = version | more >> 16 & 0xFF, rax | more & ~0xFF0000
            after = self._seamcall(row.number, operands, lp=lp, version=version, rax=rax, outputs=outputs)
        self.expect(after[RAX])
        if self._mended is not None:
            mend, value = self._mended
            mend(self, operands)
            self._value = value
            after = self._seamcall(row.number, operands, lp=lp, version=version, rax=rax, outputs=False)
            self.expect(after[RAX])
        return after

    def expect(self, value: int) -> None:
        """Compare a status with the one that the case is about.

        Raises:
            Wrong: it is another.
        """
        assert self._case is not None
        if value != self._value:
            raise Wrong(f"RAX is {value:#x} ({status_text(value)}), not {self._value:#x}")
        self._answered = True

    def provoked(self, value: int) -> None:
        """The case's status, from a call that the case made itself.

        Raises:
            Wrong: it is not the case's.
        """
        self._provoked += 1
        self.expect(value)

    # ------------------------------------------------------------------ the guest
    def guest(self, program: Program) -> Script:
        """What the TD's VCPU will run at its next TDH.VP.ENTER."""
        script: Script = self.machine.engine.add_program(program)  # type: ignore[attr-defined]
        return script

    def enter(self, td: Td | None = None) -> list[int]:
        """TDH.VP.ENTER; the registers after the TD exit."""
        return self.call("TDH.VP.ENTER", rcx=(td or self.td).tdvpr)

    def run_guest(self, program: Program) -> Any:
        """Run a guest until it leaves by TDG.VP.VMCALL at its end; what the program returned.

        Raises:
            Wrong: the TD exits for another reason.
        """
        result: list[Any] = []

        def whole(cpu: Script) -> Any:
            result.append((yield from program(cpu)))
            yield Tdcall(rax=0, rcx=0)

        script = self.guest(whole)
        after = self.enter()
        if script.error is not None:
            raise script.error
        if after[RAX] != _TDCALL_REASON or not result:
            raise Wrong(f"TDH.VP.ENTER gave {after[RAX]:#x} ({status_text(after[RAX])}), not a TDVMCALL")
        return result[0]

    def tdcall(self, *, version: int = 0, rax: int = 0, **operands: int) -> list[int]:
        """The guest's call that the case is about; the guest's registers after it.

        Raises:
            Wrong: RAX, or another register, is not as it should be.
        """
        assert self._case is not None
        row = BY_NAME[self._case.leaf]
        with self._spoilt(operands) as more:
            return self._tdcall(row, operands, version | more >> 16 & 0xFF, rax | more & ~0xFF0000)

    def _tdcall(self, row: Leaf, operands: dict[str, int], version: int, rax: int) -> list[int]:
        assert self._case is not None
        before = list(_FILL)
        before[RAX] = row.number | version << 16 | rax
        for name, value in operands.items():
            before[regs.number(name)] = value
        given = {name: before[number] for number, name in enumerate(regs.NAMES) if number != regs.RSP}

        def program(cpu: Script) -> Any:
            before[regs.RSP] = cpu.gpr[regs.RSP]
            return (yield Tdcall(**given))

        after = list(self.run_guest(program))
        self._provoked += 1
        outputs = self._case.outputs and self._defect is None
        wrong = wrong_registers(row, min(version, row.max_version), before, after, outputs=outputs)
        if wrong:
            raise Wrong(f"{row.name} with {status_text(after[RAX])}: {'; '.join(wrong)}")
        self.expect(after[RAX])
        return after

    def exits(self, program: Program) -> list[int]:
        """A guest that makes TDH.VP.ENTER end as the case says; the registers after the TD exit.

        Raises:
            Wrong: RAX is not as it should be.
        """
        self.guest(program)
        after = self.enter()
        self._provoked += 1
        self.expect(after[RAX])
        return after

    # ------------------------------------------------------------------ memory
    def page(self) -> int:
        """A free page of the TDMR (HPA)."""
        self._next_page += PAGE
        return self._next_page - PAGE

    def large(self) -> int:
        """A free 2-MiB page of the TDMR (HPA)."""
        self._next_large += LARGE_PAGE
        return self._next_large - LARGE_PAGE

    def buffer(self, data: bytes = b"", size: int = PAGE) -> int:
        """The hypervisor's memory, aligned to a page, with ``data`` at its start (PA)."""
        at = self._next_buffer
        self._next_buffer += max(size, len(data), PAGE) + PAGE - 1 & -PAGE
        if data:
            self.memory.write(at, data)
        return at

    def hkid(self) -> int:
        """A free private HKID."""
        self._next_hkid += 1
        return self._next_hkid - 1

    @property
    def seam_range(self) -> int:
        """The first address of the SEAM range."""
        return self.probe.seam_range

    # ------------------------------------------------------------------ behind the module's back
    def tdcs_field(self, field: Field, tdr: int = 0) -> Place:
        """Where a field of the TDCS of a TD is, by default of the stage's."""
        return Place(self.probe.tdcs(tdr or self.td.tdr), field.offset)

    def tdr_of(self, leaf: str, operands: dict[str, int]) -> int:
        """The TD that a call is about: HPA of its TDR."""
        for operand in BY_NAME[leaf].inputs:
            page = operands.get(operand.register.lower(), 0) & HPA
            if operand.kind is Kind.TDR:
                return page
            if operand.kind is Kind.TDVPR:
                return self.ok("TDH.PHYMEM.PAGE.RDMD", rcx=page)[RDX]
        return self.td.tdr

    @contextlib.contextmanager
    def poked(self, place: Place, value: int, size: int = 2) -> Iterator[None]:
        """``size`` bytes of the module's memory hold ``value`` for a while.

        What a refused call left in a lock (the host-priority bit) goes, too.
        """
        view, offset = place
        before = bytes(view[offset : offset + size])
        view[offset : offset + size] = value.to_bytes(size, "little")
        try:
            yield
        finally:
            view[offset : offset + size] = before

    def locked_page(self, hpa: int, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Another processor holds the PAMT lock of a page."""
        return self.poked(self.probe.pamt_entry(hpa), _SHARE if shared else 1)

    def locked(self, place: Place) -> contextlib.AbstractContextManager[None]:
        """Another processor holds a lock exclusively."""
        return self.poked(place, 1)

    @contextlib.contextmanager
    def locked_entry(self, tdr: int, gpa: int, level: int) -> Iterator[None]:
        """The guest holds the lock of the Secure EPT entry of ``gpa`` at ``level``."""
        entry = self.probe.sept_entry(tdr, gpa, level)
        with self.poked(entry, entry.read(8) | TDEL, 8):
            yield

    @contextlib.contextmanager
    def msr(self, index: int, value: int, lp: int = 0) -> Iterator[None]:
        """An MSR of a processor has another value, past its locks and rules."""
        msrs = self.lps[lp].msrs
        before = msrs.peek(index)
        msrs.poke(index, value)
        try:
            yield
        finally:
            msrs.poke(index, before)

    def private_view(self, hpa: int, hkid: int) -> memoryview:
        """A page of the TDMR as the module sees it."""
        return self.machine.memory.map_page(hpa, hkid)

    # ------------------------------------------------------------------ end
    def close(self) -> None:
        """Free the machine."""
        self.platform.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
