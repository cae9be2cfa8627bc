"""VMX instructions of code in the root world, as far as a hypervisor of TDs alone needs them.

VMXON, VMXOFF, INVEPT and INVVPID do their work.  VMCSs of ordinary virtual machines can be kept (VMCLEAR,
VMPTRLD, VMPTRST, VMREAD, VMWRITE), but not entered: VMLAUNCH and VMRESUME fail with error 7, as for control
fields that the processor does not take.  Source: Intel SDM volume 3, chapter 31.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from swtdx.arch import msrs
from swtdx.arch.exits import ExitReason
from swtdx.arch.units import MASK64, PAGE
from swtdx.arch.x86 import CR4_VMXE
from swtdx.machine.cpu.core import Mode
from swtdx.machine.engine.protocol import GuestContext
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.memory import Requestor
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.vmx import decode

#: VM-instruction error numbers (SDM volume 3, section 31.4).
INVALID_CONTROLS: Final = 7
VMPTRLD_INVALID: Final = 9
VMPTRLD_REVISION: Final = 11
VMXON_IN_ROOT: Final = 15
VMCLEAR_INVALID: Final = 2
INVALID_INVALIDATION: Final = 28

#: RFLAGS: CF, PF, AF, ZF, SF, OF.
ARITHMETIC: Final = 0x8D5
_CF: Final = 1 << 0
_ZF: Final = 1 << 6
#: VMCS field 0x4400: the error of the last VM instruction that failed with a current VMCS.
_INSTRUCTION_ERROR: Final = 0x4400


class Code(Protocol):
    """The code that executes them: its processor, registers, and memory by linear address."""

    lp: LogicalProcessor

    @property
    def context(self) -> GuestContext:
        """The registers."""

    def operand(self) -> int | None:
        """The linear address of the memory operand of the instruction at RIP."""

    def read(self, linear: int, count: int) -> bytes:
        """``count`` bytes; raises PageFault."""

    def write(self, linear: int, data: bytes) -> None:
        """Store ``data``; raises PageFault."""


class VmxFailure(Exception):
    """VMfail with ``error``; without a current VMCS software sees only that it failed."""

    def __init__(self, error: int) -> None:
        super().__init__(f"VM-instruction error {error}")
        self.error = error


class RootVmx:
    """The VMX instructions of one processor's root world."""

    def __init__(self, world: Code) -> None:
        self._world = world
        self._lp = world.lp
        self._current: int | None = None
        #: Fields of ordinary VMCSs by their address, until they are cleared.
        self._fields: dict[int, dict[int, int]] = {}
        self._carry = {
            ExitReason.VMXON.value: self._vmxon,
            ExitReason.VMXOFF.value: self._vmxoff,
            ExitReason.VMCLEAR.value: self._vmclear,
            ExitReason.VMPTRLD.value: self._vmptrld,
            ExitReason.VMPTRST.value: self._vmptrst,
            ExitReason.VMREAD.value: self._vmread,
            ExitReason.VMWRITE.value: self._vmwrite,
            ExitReason.VMLAUNCH.value: self._vmlaunch,
            ExitReason.VMRESUME.value: self._vmlaunch,
            ExitReason.INVEPT.value: self._invalidate,
            ExitReason.INVVPID.value: self._invalidate,
        }

    def execute(self, reason: int, instruction: Any) -> None:
        """Carry out the VMX instruction that would be a VM exit with ``reason`` in a guest.

        Raises:
            InvalidOpcode, GeneralProtection: as the instruction does; RIP has not moved then.
            PageFault: its memory operand is not mapped.
        """
        carry = self._carry.get(reason)
        lp, context = self._lp, self._world.context
        if carry is None or (lp.mode is not Mode.ROOT and reason != ExitReason.VMXON.value):
            raise InvalidOpcode(f"{instruction} outside VMX operation, or not known here")
        if context.cpl:
            raise GeneralProtection(f"{instruction} with CPL {context.cpl}")
        flags = 0
        try:
            carry(instruction)
        except VmxFailure as failure:
            if self._current is None:
                flags = _CF
            else:
                flags = _ZF
                self._fields[self._current][_INSTRUCTION_ERROR] = failure.error
        context.rflags = context.rflags & ~ARITHMETIC | flags
        context.rip += int(instruction.len)

    # ------------------------------------------------------------------ operands
    def _memory(self, instruction: Any) -> int:
        linear = self._world.operand()
        if linear is None:
            raise InvalidOpcode(f"{instruction} needs an operand in memory")
        return linear

    def _pointer(self, instruction: Any) -> int:
        return int.from_bytes(self._world.read(self._memory(instruction), 8), "little")

    def _is_region(self, pa: int) -> bool:
        """Whether a VMXON region or VMCS can lie at ``pa``."""
        return not pa % PAGE and not pa >> self._lp.model.maxpa

    def _has_revision(self, pa: int) -> bool:
        revision = self._lp.machine.memory.read(pa, 4, Requestor.HOST)
        return int.from_bytes(revision, "little") == self._lp.rdmsr(msrs.IA32_VMX_BASIC) & 0x7FFFFFFF

    def _value(self, instruction: Any, operand: int) -> int:
        """What a register or memory operand of VMREAD and VMWRITE holds."""
        register = decode.register_operand(instruction, operand)
        if register is None:
            return self._pointer(instruction)
        return int(self._world.context.gpr[register])

    # ------------------------------------------------------------------ instructions
    def _vmxon(self, instruction: Any) -> None:
        lp = self._lp
        if not lp.cr4 & CR4_VMXE:
            raise InvalidOpcode("VMXON with CR4.VMXE clear")
        if lp.mode is Mode.ROOT:
            raise VmxFailure(VMXON_IN_ROOT)
        pa = self._pointer(instruction)
        if not self._is_region(pa) or not self._has_revision(pa):
            # There is no current VMCS yet: VMfailInvalid.
            self._current = None
            raise VmxFailure(0)
        lp.vmxon()
        self._current = None

    def _vmxoff(self, _instruction: Any) -> None:
        self._lp.vmxoff()
        self._current = None

    def _vmclear(self, instruction: Any) -> None:
        pa = self._pointer(instruction)
        if not self._is_region(pa):
            raise VmxFailure(VMCLEAR_INVALID)
        self._fields.pop(pa, None)
        if self._current == pa:
            self._current = None

    def _vmptrld(self, instruction: Any) -> None:
        pa = self._pointer(instruction)
        if not self._is_region(pa):
            raise VmxFailure(VMPTRLD_INVALID)
        if not self._has_revision(pa):
            raise VmxFailure(VMPTRLD_REVISION)
        self._fields.setdefault(pa, {})
        self._current = pa

    def _vmptrst(self, instruction: Any) -> None:
        current = MASK64 if self._current is None else self._current
        self._world.write(self._memory(instruction), current.to_bytes(8, "little"))

    def _current_fields(self) -> dict[int, int]:
        if self._current is None:
            raise VmxFailure(0)
        return self._fields[self._current]

    def _vmread(self, instruction: Any) -> None:
        fields = self._current_fields()
        value = fields.get(self._value(instruction, 1) & 0xFFFFFFFF, 0)
        register = decode.register_operand(instruction, 0)
        if register is None:
            self._world.write(self._memory(instruction), value.to_bytes(8, "little"))
        else:
            self._world.context.gpr[register] = value

    def _vmwrite(self, instruction: Any) -> None:
        self._current_fields()[self._value(instruction, 0) & 0xFFFFFFFF] = self._value(instruction, 1)

    def _vmlaunch(self, _instruction: Any) -> None:
        self._current_fields()
        raise VmxFailure(INVALID_CONTROLS)

    def _invalidate(self, instruction: Any) -> None:
        """INVEPT (types 1 and 2) and INVVPID (types 0 to 3): all translations of guests go."""
        kind = self._value(instruction, 0)
        kinds = (1, 2) if str(instruction).startswith("invept") else (0, 1, 2, 3)
        if kind not in kinds:
            raise VmxFailure(INVALID_INVALIDATION)
        for space in tuple(self._lp.spaces.values()):
            space.flush()
