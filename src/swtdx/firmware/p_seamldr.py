"""The P-SEAMLDR: SEAMCALLs with bit 63 of RAX set.

INFO and SEAMINFO report, INSTALL loads a module when the last processor calls it, SHUTDOWN ends the
loader.  Leaves, operands and the state machine: seamcall.md §8 and intel/seam-loader 1.0
(``pseamldr_dispatcher.c`` and ``api_calls/``); status codes: status-codes.md §6.  The loader never says
more than a status code to the software that calls it; ``reason`` keeps the words for people.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from swtdx.arch import status as st
from swtdx.arch.platform_structs import VENDOR_INTEL
from swtdx.arch.regs import RAX, RCX, RDX
from swtdx.arch.seam_structs import SEAMEXTEND, SEAMLDR_INFO
from swtdx.firmware.install import Installer
from swtdx.firmware.loader import Loader
from swtdx.firmware.seam_layout import HALF_PAGE
from swtdx.firmware.sigstruct import Refusal
from swtdx.machine.memory import Requestor

if TYPE_CHECKING:
    from swtdx.firmware.acm import Acm
    from swtdx.machine.processor import LogicalProcessor
    from swtdx.machine.uncore import Uncore

INFO: Final = 1 << 63
INSTALL: Final = 1 << 63 | 1
SHUTDOWN: Final = 1 << 63 | 2
SEAMINFO: Final = 1 << 63 | 3

BUILD_DATE: Final = 0x20240101
BUILD_NUMBER: Final = 0
MAJOR, MINOR = 1, 5


class PSeamldr(Loader):
    """The loader of one machine; the object is the entry point of SEAMCALL."""

    def __init__(self, machine: Uncore, table_pa: int, trusted: Collection[bytes], acm: Acm) -> None:
        super().__init__(machine, table_pa, trusted)
        self.acm = acm
        #: Why the last call failed, for people; empty after a success.
        self.reason = ""
        self.installing: set[int] = set()
        self.shutting_down: set[int] = set()
        self.installer = Installer(self)
        self._leaves: dict[int, Callable[[LogicalProcessor], int]] = {
            INFO: self._info,
            INSTALL: self._install,
            SHUTDOWN: self._shutdown,
            SEAMINFO: self._seaminfo,
        }

    def __call__(self, lp: LogicalProcessor) -> None:
        """One SEAMCALL."""
        self.reason = ""
        leaf = self._leaves.get(lp.gpr[RAX])
        if leaf is None:
            self.reason = f"there is no P-SEAMLDR leaf {lp.gpr[RAX]:#x}"
            lp.gpr[RAX] = st.PSEAMLDR_EBADPARAM
            return
        try:
            lp.gpr[RAX] = leaf(lp)
        except Refusal as refusal:
            self.reason = str(refusal)
            lp.gpr[RAX] = refusal.status

    # ------------------------------------------------------------------ leaves
    def _info(self, lp: LogicalProcessor) -> int:
        pa = self.shared_buffer(lp.gpr[RCX], SEAMLDR_INFO.size, "SEAMLDR_INFO")
        info = SEAMLDR_INFO.new()
        SEAMLDR_INFO.attributes.set(info, 1 << 31 if self.acm.debug else 0)
        SEAMLDR_INFO.vendor_id.set(info, VENDOR_INTEL)
        SEAMLDR_INFO.build_date.set(info, BUILD_DATE)
        SEAMLDR_INFO.build_num.set(info, BUILD_NUMBER)
        SEAMLDR_INFO.minor.set(info, MINOR)
        SEAMLDR_INFO.major.set(info, MAJOR)
        SEAMLDR_INFO.acm_x2apic.set(info, self.acm_x2apic)
        SEAMLDR_INFO.seamextend.set(info, self.read_extend(lp))
        self.memory.write(pa, info, Requestor.SEAM)
        return st.PSEAMLDR_SUCCESS

    def _seaminfo(self, lp: LogicalProcessor) -> int:
        pa = self.shared_buffer(lp.gpr[RCX], HALF_PAGE, "the buffer of SEAMINFO")
        self.memory.write(pa, self.memory.read(self.table_pa, HALF_PAGE, Requestor.SEAM), Requestor.SEAM)
        return st.PSEAMLDR_SUCCESS

    def _install(self, lp: LogicalProcessor) -> int:
        """Collect the processors; the last one's call does the work."""
        lpid = lp.x2apic_id
        lp_params = lp.gpr[RCX]
        lp.gpr[RDX] = 0
        if self.shutting_down:
            raise Refusal(st.PSEAMLDR_EBADCALL, "SEAMLDR.SHUTDOWN has begun")
        if lpid in self.installing:
            raise Refusal(
                st.PSEAMLDR_EBADCALL,
                f"SEAMLDR.INSTALL was called twice on the processor with x2APIC id {lpid}",
            )
        if not self.installing:
            self.snapshot = self.read_extend(lp)
            closed = bytearray(self.snapshot)
            SEAMEXTEND.seam_ready.set(closed, 0)
            self.write_extend(lp, bytes(closed))
        self.installing.add(lpid)
        if len(self.installing) < self.total_lps:
            return st.PSEAMLDR_SUCCESS
        self.installing.clear()
        return self.installer.install(lp, lp_params)

    def _shutdown(self, lp: LogicalProcessor) -> int:
        first = not self.shutting_down
        self.shutting_down.add(lp.x2apic_id)
        if first:
            closed = bytearray(self.read_extend(lp))
            SEAMEXTEND.seam_ready.set(closed, 0)
            self.write_extend(lp, bytes(closed))
        if len(self.shutting_down) < self.total_lps:
            return st.PSEAMLDR_SUCCESS
        if lp.x2apic_id != self.acm_x2apic:
            raise Refusal(
                st.PSEAMLDR_EBADCALL,
                f"the last SHUTDOWN must be on the processor with x2APIC id {self.acm_x2apic}, "
                "which ran the loader ACM",
            )
        self.write_extend(lp, bytes(SEAMEXTEND.size))
        self.machine.seam.remove_module()
        return st.PSEAMLDR_SUCCESS
