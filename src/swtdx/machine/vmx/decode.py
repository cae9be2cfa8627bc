"""What instruction a guest stopped at: lengths, operands, addresses.

The decoder is ``iced-x86``; the instructions that a TD executes most are recognised by their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swtdx.arch import vmcs
from swtdx.machine.vmx import exit as reason

if TYPE_CHECKING:
    from swtdx.machine.engine.protocol import GuestContext

TDCALL_BYTES: Final = b"\x66\x0f\x01\xcc"
#: No x86 instruction is longer.
MAX_LENGTH: Final = 15

#: Mnemonics that exit from VMX non-root operation wherever they exist, with their exit reasons.
_ALWAYS_EXIT: Final = {
    "VMCALL": reason.VMCALL,
    "VMCLEAR": 19,
    "VMLAUNCH": 20,
    "VMPTRLD": 21,
    "VMPTRST": 22,
    "VMREAD": 23,
    "VMRESUME": 24,
    "VMWRITE": 25,
    "VMXOFF": 26,
    "VMXON": 27,
    "INVEPT": 50,
    "INVVPID": 53,
    "VMFUNC": 59,
    "ENCLS": 60,
    "ENCLV": 70,
    "GETSEC": reason.GETSEC,
    "PCONFIG": reason.PCONFIG,
    "SEAMCALL": reason.SEAMCALL,
    "TDCALL": reason.TDCALL,
    "RSM": reason.RSM,
}

_names: dict[int, str] = {}


def _iced() -> Any:
    """iced-x86, imported when first needed: most runs of most guests never do."""
    import iced_x86

    if not _names:
        for name in _ALWAYS_EXIT:
            _names[getattr(iced_x86.Mnemonic, name)] = name
    return iced_x86


def decode(code: bytes, rip: int, bits: int) -> Any:
    """Decode the first instruction of ``code`` (an iced-x86 ``Instruction``)."""
    return _iced().Decoder(bits, code, ip=rip).decode()


def length(code: bytes, rip: int, bits: int) -> int:
    """Length in bytes of the instruction that ``code`` starts with."""
    return int(decode(code, rip, bits).len)


def is_invd(code: bytes, bits: int) -> bool:
    """Whether ``code`` starts with INVD."""
    return bool(decode(code, 0, bits).mnemonic == _iced().Mnemonic.INVD)


def is_int1(code: bytes, bits: int) -> bool:
    """Whether ``code`` starts with INT1 (ICEBP)."""
    return 0xF1 in code and bool(decode(code, 0, bits).mnemonic == _iced().Mnemonic.INT1)


def undefined_reason(code: bytes, bits: int) -> tuple[int | None, int]:
    """The exit reason and length of an instruction that the engine does not know.

    The reason is None for one that the processor does not know either (#UD).
    """
    if code.startswith(TDCALL_BYTES):
        return reason.TDCALL, 4
    instruction = decode(code, 0, bits)
    name = _names.get(instruction.mnemonic)
    return (None if name is None else _ALWAYS_EXIT[name]), int(instruction.len)


def is_movdir64b(instruction: Any) -> bool:
    """Whether a decoded instruction is MOVDIR64B."""
    return bool(instruction.mnemonic == _iced().Mnemonic.MOVDIR64B)


def register_operand(instruction: Any, operand: int) -> int | None:
    """The number of the general register that is ``operand`` of a decoded instruction; None: it is none."""
    iced = _iced()
    if instruction.op_kind(operand) != iced.OpKind.REGISTER:
        return None
    return _gpr_number(iced.Register, instruction.op_register(operand))


def memory_operand(code: bytes, rip: int, bits: int, context: GuestContext) -> int | None:
    """The linear address of the instruction's memory operand, or None when it has none."""
    iced = _iced()
    instruction = decode(code, rip, bits)
    kinds, registers = iced.OpKind, iced.Register
    mask = (1 << bits) - 1
    for operand in range(instruction.op_count):
        kind = instruction.op_kind(operand)
        if kind == kinds.MEMORY:
            # RIP-relative displacements come out of the decoder as addresses already.
            address = instruction.memory_displacement
            if not instruction.is_ip_rel_memory_operand:
                address += _register(iced, instruction.memory_base, context)
                address += _register(iced, instruction.memory_index, context) * instruction.memory_index_scale
            return int(address + _segment_base(iced, instruction.memory_segment, bits, context)) & mask
        if kind in (kinds.MEMORY_SEG_SI, kinds.MEMORY_SEG_ESI, kinds.MEMORY_SEG_RSI):
            return context.gpr[6] + _segment_base(iced, instruction.memory_segment, bits, context) & mask
        if kind in (kinds.MEMORY_ESDI, kinds.MEMORY_ESEDI, kinds.MEMORY_ESRDI):
            return context.gpr[7] + _segment_base(iced, registers.ES, bits, context) & mask
    return None


def _segment_base(iced: Any, segment: int, bits: int, context: GuestContext) -> int:
    """The base of a segment register; 64-bit code has only FS and GS bases."""
    registers = iced.Register
    names = {registers.ES: "ES", registers.CS: "CS", registers.SS: "SS", registers.DS: "DS"}
    if segment in names:
        return 0 if bits == 64 else context.read(getattr(vmcs, f"GUEST_{names[segment]}_BASE"))
    return context.read(vmcs.GUEST_FS_BASE if segment == registers.FS else vmcs.GUEST_GS_BASE)


def _register(iced: Any, register: int, context: GuestContext) -> int:
    """The value of a general register of any width, 0 for none."""
    registers = iced.Register
    if registers.RAX <= register <= registers.R15:
        return int(context.gpr[register - registers.RAX])
    if registers.EAX <= register <= registers.R15D:
        return int(context.gpr[register - registers.EAX]) & 0xFFFFFFFF
    if registers.AX <= register <= registers.R15W:
        return int(context.gpr[register - registers.AX]) & 0xFFFF
    return 0


def control_register_access(code: bytes, bits: int) -> tuple[str, int, int, int] | None:
    """Decode MOV to/from CRn, CLTS, LMSW, SMSW as (kind, CR, GPR, length).

    ``kind`` is "to", "from", "clts", "lmsw" or "smsw"; the GPR number is -1 for a memory operand.
    None when it is another instruction.
    """
    iced = _iced()
    instruction = decode(code, 0, bits)
    mnemonic, registers = iced.Mnemonic, iced.Register
    if instruction.mnemonic == mnemonic.CLTS:
        return "clts", 0, -1, int(instruction.len)
    if instruction.mnemonic in (mnemonic.LMSW, mnemonic.SMSW):
        kind = "lmsw" if instruction.mnemonic == mnemonic.LMSW else "smsw"
        return kind, 0, _gpr_number(registers, instruction.op0_register), int(instruction.len)
    if instruction.mnemonic != mnemonic.MOV:
        return None
    first, second = instruction.op0_register, instruction.op1_register
    if registers.CR0 <= first <= registers.CR15:
        return "to", first - registers.CR0, _gpr_number(registers, second), int(instruction.len)
    if registers.CR0 <= second <= registers.CR15:
        return "from", second - registers.CR0, _gpr_number(registers, first), int(instruction.len)
    return None


def debug_register_access(code: bytes, bits: int) -> tuple[bool, int, int, int] | None:
    """Decode MOV to/from DRn as (whether it writes, DR, GPR, length); None: it is another instruction."""
    iced = _iced()
    instruction = decode(code, 0, bits)
    registers = iced.Register
    if instruction.mnemonic != iced.Mnemonic.MOV:
        return None
    first, second = instruction.op0_register, instruction.op1_register
    if registers.DR0 <= first <= registers.DR15:
        return True, first - registers.DR0, _gpr_number(registers, second), int(instruction.len)
    if registers.DR0 <= second <= registers.DR15:
        return False, second - registers.DR0, _gpr_number(registers, first), int(instruction.len)
    return None


def _gpr_number(registers: Any, register: int) -> int:
    for base in (registers.RAX, registers.EAX, registers.AX):
        if base <= register < base + 16:
            return int(register - base)
    return -1
