"""What instruction a guest stopped at: lengths, operands, addresses.

The decoder is ``iced-x86``; the instructions that a TD executes most are recognised by their bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

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


def undefined_reason(code: bytes, bits: int) -> tuple[int | None, int]:
    """The exit reason and length of an instruction that the engine does not know.

    The reason is None for one that the processor does not know either (#UD).
    """
    if code.startswith(TDCALL_BYTES):
        return reason.TDCALL, 4
    instruction = decode(code, 0, bits)
    name = _names.get(instruction.mnemonic)
    return (None if name is None else _ALWAYS_EXIT[name]), int(instruction.len)


def memory_operand(code: bytes, rip: int, bits: int, context: GuestContext) -> int | None:
    """The linear address of the instruction's memory operand, or None when it has none."""
    iced = _iced()
    instruction = decode(code, rip, bits)
    segments = {
        iced.Register.ES: "ES",
        iced.Register.CS: "CS",
        iced.Register.SS: "SS",
        iced.Register.DS: "DS",
        iced.Register.FS: "FS",
        iced.Register.GS: "GS",
    }

    def value(register: int, _element: int, _size: int) -> int | None:
        from swtdx.arch import vmcs

        if register in segments:
            # 64-bit code has only FS and GS bases.
            if bits == 64 and segments[register] not in ("FS", "GS"):
                return 0
            return context.read(getattr(vmcs, f"GUEST_{segments[register]}_BASE"))
        return _register(iced, register, context)

    for operand in range(instruction.op_count):
        kind = instruction.op_kind(operand)
        if kind in _memory_kinds(iced):
            address = _virtual_address(instruction, operand, value)
            return None if address is None else address & (1 << 64) - 1
    return None


def _virtual_address(
    instruction: Any, operand: int, value: Callable[[int, int, int], int | None]
) -> int | None:
    address: int | None = instruction.virtual_address(operand, 0, value)
    return address


def _memory_kinds(iced: Any) -> tuple[int, ...]:
    kinds = iced.OpKind
    return (
        kinds.MEMORY, kinds.MEMORY_SEG_SI, kinds.MEMORY_SEG_ESI, kinds.MEMORY_SEG_RSI,
        kinds.MEMORY_ESDI, kinds.MEMORY_ESEDI, kinds.MEMORY_ESRDI,
        kinds.MEMORY_SEG_DI, kinds.MEMORY_SEG_EDI, kinds.MEMORY_SEG_RDI,
    )  # fmt: skip


def _register(iced: Any, register: int, context: GuestContext) -> int | None:
    """The value of a general register of any width."""
    registers = iced.Register
    if registers.RAX <= register <= registers.R15:
        return context.gpr[register - registers.RAX]
    if registers.EAX <= register <= registers.R15D:
        return context.gpr[register - registers.EAX] & 0xFFFFFFFF
    if registers.AX <= register <= registers.R15W:
        return context.gpr[register - registers.AX] & 0xFFFF
    if register in (registers.RIP, registers.EIP):
        return context.rip
    return None


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


def _gpr_number(registers: Any, register: int) -> int:
    for base in (registers.RAX, registers.EAX, registers.AX):
        if base <= register < base + 16:
            return int(register - base)
    return -1
