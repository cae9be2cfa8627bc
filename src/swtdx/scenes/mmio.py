"""A read of a device's register, from the instruction that faults to the value that arrives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from swtdx.arch import ghci
from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.arch.regs import R8, R9, RAX, RBP, RBX, RDI, RSI
from swtdx.arch.td_config import SHARED_BIT_48
from swtdx.arch.units import PAGE
from swtdx.arch.x86 import VECTOR_VE
from swtdx.machine.engine.scripted import GuestFault, Read, Script, Tdcall, Write
from swtdx.scenes.looking import look, registers
from swtdx.scenes.model import Rows, Step
from swtdx.scenes.stage import RAM, Stage, recorded
from swtdx.trace.record import Kind, Record
from swtdx.vmm.td import Td

#: Where the device is, and the register that the guest reads.
DEVICE: Final = 0xB000_0000
REGISTER: Final = DEVICE + 8
_ACCEPT: Final = GUEST_BY_NAME["TDG.MEM.PAGE.ACCEPT"].number
_VEINFO_GET: Final = GUEST_BY_NAME["TDG.VP.VEINFO.GET"].number
_KEEPERS: Final = (RBX, RBP, RSI, RDI, R8, R9)
_POWER_OFF: Final = 0x605


class _Device:
    """A device with one register; when it is read, the hypervisor takes a look around."""

    def __init__(self, play: _Play, value: int) -> None:
        self._play = play
        self.value = value
        #: (offset, size) of every read.
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        self._play.emulating()
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing to write here."""


class _Play:
    """One run of the exchange, recorded."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.device = _Device(self, stage.word("the device's register", 4))
        self.secrets = [stage.word(f"secret {n}") for n in _KEEPERS]
        self.start = self.looked = self.resumed = 0
        self.arrived: int | None = None
        self.view: Rows | None = None
        self.td: Td = stage.td(self._guest)
        io = stage.board(self.td, [(DEVICE, PAGE)])
        io.board.mmio.register(DEVICE, PAGE, self.device, name="the scene's device")
        self.result = stage.runner(io).run(10)

    # ------------------------------------------------------------------ in the guest
    def _guest(self, cpu: Script) -> Any:
        yield Tdcall(rax=_ACCEPT, rcx=RAM)
        yield Write(RAM, self.secrets[0])
        # A call that changes nothing, so that the scene begins with a fresh TDH.VP.ENTER.
        yield from self._vmcall(ghci.GET_TD_VMCALL_INFO, 0)
        self.start = len(self.stage.recorder.records)
        self._load_secrets(cpu)
        try:
            yield Read(SHARED_BIT_48 | REGISTER, 4)
        except GuestFault as fault:
            if fault.vector != VECTOR_VE:
                raise
            info = yield Tdcall(rax=_VEINFO_GET)
            # As Linux does: the instruction at RIP says how many bytes, and that it is a read into EAX.
            self._load_secrets(cpu)
            after = yield from self._vmcall(ghci.MMIO, 4, 0, info.r9, 0)
            cpu.gpr[RAX] = after.r11
        self.arrived = cpu.gpr[RAX]
        yield from self._vmcall(ghci.IO, 1, 1, _POWER_OFF, 0x20)

    def _load_secrets(self, cpu: Script) -> None:
        for register, value in zip(_KEEPERS, self.secrets, strict=True):
            cpu.gpr[register] = value

    @staticmethod
    def _vmcall(function: int, *operands: int) -> Any:
        named = {f"r{12 + n}": value for n, value in enumerate(operands)}
        return (yield Tdcall(rax=0, rcx=ghci.BASIC_MASK, r10=0, r11=function, **named))

    # ------------------------------------------------------------------ in the hypervisor
    def emulating(self) -> None:
        """The device is being read: the guest waits, and the hypervisor has the processor."""
        self.looked = len(self.stage.recorder.records)
        self.view = look(self.stage, self.td, RAM)
        self.resumed = len(self.stage.recorder.records)

    # ------------------------------------------------------------------ what was recorded
    def before(self) -> list[Record]:
        """From the TDH.VP.ENTER that leads to the access up to the emulation."""
        records = self.stage.recorder.records
        first = max(
            index
            for index, record in enumerate(records[: self.start])
            if record.kind is Kind.SEAMCALL and record.tdvpr is not None
        )
        return records[first : self.looked]

    def after(self) -> list[Record]:
        """From the TDH.VP.ENTER with the answer up to the VM entry that carries it in."""
        records = self.stage.recorder.records[self.resumed :]
        end = next(index for index, record in enumerate(records) if record.kind is Kind.ENTRY)
        return records[: end + 1]


_WORDS: Final = {
    (Kind.SEAMCALL, 1): (
        "The hypervisor enters the vCPU",
        (
            "All it has is the address of the vCPU's root page. What the vCPU goes on with is in the TDVPS, "
            "where it cannot look."
        ),
    ),
    (Kind.ENTRY, 1): (
        "The module loads the vCPU's state and does the VM entry",
        (
            "The guest's registers come out of the TDVPS; the hypervisor supplies only what the guest's last "
            "TDVMCALL asked for."
        ),
    ),
    (Kind.CONVERTED, 1): (
        "The guest reads the device, and gets a #VE",
        (
            "The shared EPT maps nothing there, and its entry has suppress-#VE clear: the processor itself "
            "turns the EPT violation into an exception in the guest. Nothing leaves the TD."
        ),
    ),
    (Kind.EXIT, 1): (
        "The guest's #VE handler asks the module what happened",
        "TDCALL is a VM exit, but to the module: the hypervisor does not learn of it.",
    ),
    (Kind.ENTRY, 2): (
        "The module answers out of VE_INFO",
        "Exit reason, qualification and addresses, for the guest's eyes only. The next #VE may come now.",
    ),
    (Kind.EXIT, 2): (
        "The handler decodes its own instruction and asks the hypervisor by TDVMCALL",
        "The guest decides what it says: RCX names the registers that are passed, and no others.",
    ),
    (Kind.SEAMRET, 1): (
        "The SEAMCALL returns to the hypervisor",
        (
            "The module copies the registers that RCX selects, zeroes all the others, and puts the guest's "
            "into the TDVPS."
        ),
    ),
    (Kind.SEAMCALL, 2): (
        "The hypervisor enters again, with the answer in its registers",
        (
            "R10 is the status by the GHCI, R11 the value read. The module takes the selected registers and "
            "no others."
        ),
    ),
    (Kind.ENTRY, 3): (
        "The answer arrives in the guest",
        "TDCALL is done: the guest goes on behind it. It must not trust what it got; it is a device's word.",
    ),
}


def mmio(seed: bytes) -> Iterator[Step]:
    """Play the scene."""
    with Stage(seed) as stage:
        play = _Play(stage)
        seen: dict[Kind, int] = {}
        for record in play.before():
            yield _step(record, seen)
        last = play.before()[-1]
        assert last.guest is not None
        assert play.view is not None
        offset, size = play.device.reads[-1]
        yield Step(
            "The hypervisor emulates the device",
            "It has the GPA, the size and the direction that the guest told it. Of everything else there is "
            "nothing to be had.",
            facts=(
                ("device", f"{size} bytes at offset {offset:#x} of the device at GPA {DEVICE:#x}"),
                ("value", f"{play.device.value:#x}"),
            ),
            tables=(registers(last.guest, last.gpr), play.view),
            data={"device": {"value": hex(play.device.value)}},
        )
        for record in play.after():
            yield _step(record, seen)
        yield Step(
            "The guest has its value",
            "The instruction is emulated: the handler puts the value where the instruction wanted it.",
            facts=(
                ("EAX in the guest", "nothing" if play.arrived is None else f"{play.arrived:#x}"),
                ("the device's register", f"{play.device.value:#x}"),
                ("the run", str(play.result)),
            ),
            failed=play.arrived != play.device.value,
            data={"guest": {"value": hex(play.arrived or 0)}},
        )
        play.td.teardown()


def _step(record: Record, seen: dict[Kind, int]) -> Step:
    seen[record.kind] = seen.get(record.kind, 0) + 1
    title, text = _WORDS.get((record.kind, seen[record.kind]), (str(record.kind), ""))
    return recorded(title, text, record)
