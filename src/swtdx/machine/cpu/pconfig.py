"""The PCONFIG instruction, leaf 0: MKTME_KEY_PROGRAM.

Operands (Intel SDM volume 2, PCONFIG; structures.md §10): EAX = leaf, RBX = address of the 256-byte
structure, aligned to 256 bytes.  Result: RAX = 0 and ZF = 0, or the reason in RAX and ZF = 1; CF, PF,
AF, OF and SF are cleared.  Software here runs with an identity map, so RBX is a physical address with
the KeyID bits that the software's page tables would give it.

On hardware each package has its own key table and software runs PCONFIG once per package; the model's
memory has one table (:mod:`swtdx.machine.memory.keys`), so every package's PCONFIG programs it.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import ReadBuffer
from swtdx.arch.msrs import IA32_TME_ACTIVATE, TME_ACTIVATE_ENABLE, TME_ACTIVATE_LOCK
from swtdx.arch.regs import RAX, RBX
from swtdx.machine.cpu.core import ProcessorCore
from swtdx.machine.cpu.msr_file import MsrFile
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.memory import (
    MKTME_KEY_PROGRAM,
    KeyProgramFormatError,
    ProgramResult,
    Requestor,
)

MKTME_KEY_PROGRAM_LEAF: Final = 0


def program_key(lp: ProcessorCore, msrs: MsrFile, structure: ReadBuffer) -> ProgramResult:
    """Execute MKTME_KEY_PROGRAM on ``lp``, whose MSRs are ``msrs``, with the 256 bytes of
    ``structure``.

    Software in SEAM mode may program private KeyIDs, other software only shared ones.

    Raises:
        GeneralProtection: TME is not activated on this package, or reserved bits are set.
    """
    active = TME_ACTIVATE_LOCK | TME_ACTIVATE_ENABLE
    if msrs.peek(IA32_TME_ACTIVATE) & active != active:
        raise GeneralProtection("PCONFIG: IA32_TME_ACTIVATE is not locked with TME enabled")
    layout = MKTME_KEY_PROGRAM
    if not layout.reserved_is_zero(structure):
        raise GeneralProtection("PCONFIG: MKTME_KEY_PROGRAM has reserved bytes set")
    try:
        return lp.machine.memory.keys.pconfig(structure, seam=lp.in_seam)
    except KeyProgramFormatError as error:
        raise GeneralProtection(f"PCONFIG: {error}") from None


def pconfig(lp: ProcessorCore, msrs: MsrFile) -> None:
    """Execute PCONFIG with the operands in ``lp.gpr``; results go to RAX and ``lp.zf``.

    Raises:
        GeneralProtection: the leaf does not exist, RBX is not aligned to 256 bytes, reserved bits are
            set, or TME is not activated.
        ReservedBitFault: RBX has a private KeyID and the processor is not in SEAM mode.
    """
    leaf = lp.gpr[RAX] & 0xFFFFFFFF
    if leaf != MKTME_KEY_PROGRAM_LEAF:
        raise GeneralProtection(f"PCONFIG leaf {leaf:#x} does not exist")
    address = lp.gpr[RBX]
    if address % MKTME_KEY_PROGRAM.size:
        raise GeneralProtection(f"PCONFIG: the structure at {address:#x} is not aligned to 256 bytes")
    who = Requestor.SEAM if lp.in_seam else Requestor.HOST
    structure = lp.machine.memory.read(address, MKTME_KEY_PROGRAM.size, who)
    result = program_key(lp, msrs, structure)
    lp.gpr[RAX] = int(result)
    lp.zf = result is not ProgramResult.SUCCESS
    lp.cf = False
