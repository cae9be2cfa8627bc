"""What every part of the P-SEAMLDR works on: its tables, who may sign modules, and SEAMEXTEND."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.msrs import IA32_SEAMEXTEND
from swtdx.arch.seam_structs import P_SYS_INFO_TABLE, SEAMEXTEND
from swtdx.arch.units import PAGE
from swtdx.firmware.sigstruct import Refusal
from swtdx.machine.memory import Requestor
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.uncore import Uncore

#: Offset in the P-SEAMLDR's range of the 256-byte buffer through which SEAMEXTEND moves.
_EXTEND_BUFFER: Final = 0


class Loader:
    """Of one machine.  ``table_pa`` is where P_SYS_INFO_TABLE lies, ``trusted`` the SHA-384 of the keys whose
    modules are loaded."""

    def __init__(self, machine: Uncore, table_pa: int, trusted: Collection[bytes]) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.table_pa = table_pa
        self.trusted = frozenset(trusted)
        #: SEAMEXTEND as it was when the first processor called INSTALL.
        self.snapshot = bytes(SEAMEXTEND.size)
        table = self.memory.read(table_pa, PAGE, Requestor.SEAM)
        self.total_lps: int = P_SYS_INFO_TABLE.tot_num_lps.get(table)
        self.range_base: int = P_SYS_INFO_TABLE.p_seamldr_range_base.get(table)
        self.acm_x2apic: int = P_SYS_INFO_TABLE.acm_x2apicid.get(table)

    # ------------------------------------------------------------------ operands
    def shared_buffer(self, pa: int, alignment: int, what: str) -> int:
        """Check the address of a buffer of ``alignment`` bytes that the caller shares with us.

        Raises:
            Refusal: EBADPARAM: not aligned, beyond MAXPA, in the SEAM range, or a private KeyID.
        """
        addresses = self.memory.addresses
        keyid, hpa = addresses.split(pa)
        seam = self.memory.seamrr
        if pa % alignment:
            why = f"is not aligned to {alignment} bytes"
        elif pa >> addresses.maxpa:
            why = f"has bits above MAXPA {addresses.maxpa}"
        elif seam is not None and seam[0] <= hpa < seam[0] + seam[1]:
            why = "lies in the SEAM range"
        elif keyid >= addresses.first_private:
            why = f"has KeyID {keyid}, which is not a shared one"
        else:
            return pa
        raise Refusal(st.PSEAMLDR_EBADPARAM, f"{what} at {pa:#x} {why}")

    # ------------------------------------------------------------------ SEAMEXTEND
    def read_extend(self, lp: LogicalProcessor) -> bytes:
        """SEAMEXTEND, through its command MSR."""
        buffer = self.range_base + _EXTEND_BUFFER
        lp.wrmsr(IA32_SEAMEXTEND, buffer | 1)
        return self.memory.read(buffer, SEAMEXTEND.size, Requestor.SEAM)

    def write_extend(self, lp: LogicalProcessor, value: bytes) -> None:
        """Set SEAMEXTEND through its command MSR."""
        buffer = self.range_base + _EXTEND_BUFFER
        self.memory.write(buffer, value, Requestor.SEAM)
        lp.wrmsr(IA32_SEAMEXTEND, buffer)
