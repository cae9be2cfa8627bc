"""The NP-SEAMLDR: the ACM that lays out the P-SEAMLDR in the top of the SEAM range and opens its door.

Steps and result codes follow intel/seam-loader 1.0 (``SeamldrCore.c``); codes: status-codes.md §6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from swtdx.arch import status as st
from swtdx.arch.msrs import (
    IA32_MISC_ENABLE,
    IA32_SEAMEXTEND,
    IA32_SEAMRR_PHYS_BASE,
    IA32_SEAMRR_PHYS_MASK,
    IA32_SGX_DEBUG_MODE,
    MISC_ENABLE_LIMIT_CPUID,
)
from swtdx.arch.seam_structs import P_SYS_INFO_TABLE, SEAMEXTEND
from swtdx.arch.units import PAGE
from swtdx.firmware.acm import P_SEAMLDR_CONSTS, SIGNERS, Acm, enter_accs
from swtdx.firmware.errors import AcmError
from swtdx.firmware.p_seamldr import PSeamldr
from swtdx.firmware.seam_layout import (
    HALF_PAGE,
    LINEAR_CODE,
    LINEAR_DATA,
    LINEAR_KEYHOLE,
    LINEAR_KEYHOLE_EDIT,
    LINEAR_MODULE,
    LINEAR_STACK,
    SHADOW_STACK,
    aslr_bits,
    page_tables,
)
from swtdx.machine.cpu.msr_rules import RANGE_VALID
from swtdx.machine.memory import Requestor
from swtdx.machine.processor import LogicalProcessor, Mode

if TYPE_CHECKING:
    pass

#: The NP-SEAMLDR maps the whole range in 1 GiB of its own address space.
LARGEST_RANGE: Final = 1 << 30
_VMCS_REGION: Final = 2 * PAGE
_FAMILY_MODEL: Final = 0xFFFFFFF0


class NpSeamldr:
    """One execution of the ACM on one processor, which is in ACM mode."""

    def __init__(self, lp: LogicalProcessor, acm: Acm) -> None:
        self.lp = lp
        self.acm = acm
        self.machine = lp.machine
        self.memory = lp.machine.memory
        self.why = ""
        self._mutex = False

    def run(self) -> int:
        """Execute; returns the NP-SEAMLDR's status.  The processor leaves ACM mode."""
        lp = self.lp
        misc = lp.rdmsr(IA32_MISC_ENABLE)
        lp.wrmsr(IA32_MISC_ENABLE, misc & ~MISC_ENABLE_LIMIT_CPUID)
        unlocked = False
        try:
            mask = lp.rdmsr(IA32_SEAMRR_PHYS_MASK)
            if not mask & RANGE_VALID:
                return self._fail(st.NPSEAMLDR_EBADRANGE, "SEAMRR is not valid; MCHECK has not run")
            # While it works, the range is an ordinary one for this processor.
            lp.wrmsr(IA32_SEAMRR_PHYS_MASK, mask & ~RANGE_VALID)
            unlocked = True
            return self._load(mask)
        finally:
            if unlocked:
                if self._mutex:
                    self._set_mutex(0)
                lp.wrmsr(IA32_SEAMRR_PHYS_MASK, lp.msrs.peek(IA32_SEAMRR_PHYS_MASK) | RANGE_VALID)
            lp.wrmsr(IA32_MISC_ENABLE, misc)
            lp.mode = Mode.LEGACY

    def _fail(self, status: int, why: str) -> int:
        self.why = why
        return status

    # ------------------------------------------------------------------ the flow
    def _load(self, mask: int) -> int:
        lp = self.lp
        address = (1 << lp.model.maxpa) - 1 & ~((1 << 25) - 1)
        base = lp.rdmsr(IA32_SEAMRR_PHYS_BASE) & address
        size = (1 << lp.model.maxpa) - (mask & address)
        if size > LARGEST_RANGE:
            return self._fail(st.NPSEAMLDR_EBADRANGE, f"SEAMRR of {size >> 20} MiB; at most 1 GiB")
        self.table_pa = base + size - PAGE
        table = self.memory.read(self.table_pa, PAGE, Requestor.SEAM)
        checked = self._check_platform(table)
        if checked is not None:
            return checked
        busy = self._check_loaders(table)
        if busy is not None:
            return busy
        random = int.from_bytes(self.machine.random.bytes(8), "little")
        range_base = P_SYS_INFO_TABLE.p_seamldr_range_base.get(table)
        range_size = P_SYS_INFO_TABLE.p_seamldr_range_size.get(table)
        needed = self._needed(size - range_size)
        if range_size < needed:
            return self._fail(
                st.NPSEAMLDR_ENOMEM, f"the P-SEAMLDR range has {range_size:#x} bytes and needs {needed:#x}"
            )
        self.memory.direct_zero(range_base, self.table_pa - range_base, Requestor.SEAM)
        self._place_code(base + size)
        self._fill_table(aslr_bits(random))
        self._open_door(range_base)
        return st.NPSEAMLDR_SUCCESS

    def _check_platform(self, table: bytes) -> int | None:
        fields = P_SYS_INFO_TABLE
        sockets = fields.tot_num_sockets.get(table)
        if not 1 <= sockets <= 8:
            return self._fail(st.NPSEAMLDR_EBADPARAM, f"P_SYS_INFO_TABLE counts {sockets} sockets")
        first = fields.socket_cpuid_table.get(table, 0) & _FAMILY_MODEL
        for socket in range(1, sockets):
            if fields.socket_cpuid_table.get(table, socket) & _FAMILY_MODEL != first:
                return self._fail(
                    st.NPSEAMLDR_EBADPLATF, f"socket {socket} holds another family or model than socket 0"
                )
        version = fields.version.get(table)
        if version:
            return self._fail(st.NPSEAMLDR_EBADPLATF, f"P_SYS_INFO_TABLE has version {version}, not 0")
        return None

    def _check_loaders(self, table: bytes) -> int | None:
        fields = P_SYS_INFO_TABLE
        if fields.np_seamldr_mutex.get(table):
            return self._fail(st.NPSEAMLDR_ELDRINPROG, "another NP-SEAMLDR is running")
        self._set_mutex(1)
        self._mutex = True
        if fields.acm_x2apicid_valid.get(table) == 1:
            owner = fields.acm_x2apicid.get(table)
            if owner != self.lp.x2apic_id:
                return self._fail(
                    st.NPSEAMLDR_EMODBUSY, f"the loader belongs to the processor with x2APIC id {owner}"
                )
        extend = self.machine.seam.extend
        if SEAMEXTEND.p_seamldr_ready.get(extend) or SEAMEXTEND.seam_ready.get(extend):
            return self._fail(
                st.NPSEAMLDR_EMODBUSY, "a P-SEAMLDR or a module is loaded; call SEAMLDR.SHUTDOWN first"
            )
        return None

    def _set_mutex(self, value: int) -> None:
        at_ = self.table_pa + P_SYS_INFO_TABLE.np_seamldr_mutex.offset
        self.memory.write_u64(at_, value, Requestor.SEAM)

    def _needed(self, module_range: int) -> int:
        """Bytes that the P-SEAMLDR takes: code, stacks, VMCS, table, data, page tables."""
        c, fields = self.acm.constants, P_SEAMLDR_CONSTS
        code, data = fields.code_region_size.get(c), fields.data_region_size.get(c)
        stack, keyhole = fields.data_stack_size.get(c), fields.keyhole_region_size.get(c)
        edit = fields.keyhole_edit_region_size.get(c)
        mapped = (data, code, stack + SHADOW_STACK, keyhole, edit, PAGE, module_range)
        paging = PAGE * (sum(page_tables(size) for size in mapped) + 1)
        total: int = code + stack + SHADOW_STACK + _VMCS_REGION + PAGE + data + paging
        return total

    # ------------------------------------------------------------------ results
    def _place_code(self, end: int) -> None:
        """Copy what stands for the P-SEAMLDR's code below P_SYS_INFO_TABLE."""
        content = self.acm.manifest.encode()
        size = P_SEAMLDR_CONSTS.code_region_size.get(self.acm.constants)
        self.memory.write(end - PAGE - size, content[:size], Requestor.SEAM)

    def _fill_table(self, aslr: int) -> None:
        """The second half of P_SYS_INFO_TABLE."""
        table = bytearray(self.memory.read(self.table_pa, PAGE, Requestor.SEAM))
        table[HALF_PAGE:] = bytes(HALF_PAGE)
        fields, c, constants = P_SYS_INFO_TABLE, self.acm.constants, P_SEAMLDR_CONSTS
        fields.np_seamldr_mutex.set(table, 1)
        fields.code_rgn_base.set(table, LINEAR_CODE | aslr)
        fields.code_rgn_size.set(table, constants.code_region_size.get(c))
        fields.data_rgn_base.set(table, LINEAR_DATA | aslr)
        fields.data_rgn_size.set(table, constants.data_region_size.get(c))
        fields.stack_rgn_base.set(table, LINEAR_STACK | aslr)
        fields.stack_rgn_size.set(table, constants.data_stack_size.get(c) + SHADOW_STACK)
        fields.keyhole_rgn_base.set(table, LINEAR_KEYHOLE | aslr)
        fields.keyhole_rgn_size.set(table, constants.keyhole_region_size.get(c))
        fields.keyhole_edit_rgn_base.set(table, LINEAR_KEYHOLE_EDIT | aslr)
        fields.keyhole_edit_rgn_size.set(table, constants.keyhole_edit_region_size.get(c))
        fields.module_region_base.set(table, LINEAR_MODULE | aslr)
        fields.acm_x2apicid.set(table, self.lp.x2apic_id)
        fields.acm_x2apicid_valid.set(table, 1)
        self.memory.write(self.table_pa, table, Requestor.SEAM)

    def _open_door(self, range_base: int) -> None:
        """SEAMEXTEND := P_SEAMLDR_READY, and the P-SEAMLDR's entry point goes live."""
        debug = self.lp.rdmsr(IA32_SGX_DEBUG_MODE) >> 1 & 1
        extend = SEAMEXTEND.new()
        SEAMEXTEND.system_under_debug.set(extend, debug)
        SEAMEXTEND.p_seamldr_ready.set(extend, 1)
        # The register is loaded from memory; the start of the P-SEAMLDR's range serves as the buffer.
        self.memory.write(range_base, extend, Requestor.SEAM)
        self.lp.wrmsr(IA32_SEAMEXTEND, range_base)
        trusted = frozenset(bytes.fromhex(key) for key in self.acm.manifest.constant(SIGNERS).split(","))
        loader = PSeamldr(self.machine, self.table_pa, trusted, self.acm)
        self.machine.seam.p_seamldr_entry = loader


def run(lp: LogicalProcessor, acm: Acm) -> NpSeamldr:
    """Run the ACM that ``lp`` has entered.

    Raises:
        AcmError: the NP-SEAMLDR failed; ``status`` says why in its codes.
    """
    loader = NpSeamldr(lp, acm)
    status = loader.run()
    if status != st.NPSEAMLDR_SUCCESS:
        raise AcmError(loader.why, status)
    return loader


def start(lp: LogicalProcessor, pa: int, size: int, fused_key_hash: bytes) -> Acm:
    """GETSEC[ENTERACCS] of the ACM at ``pa`` (``size`` bytes) on ``lp``, to its end.

    Raises:
        InvalidOpcode, GeneralProtection: the processor cannot enter an ACM now.
        AcmError: authentication failed, or the NP-SEAMLDR did.
    """
    acm = enter_accs(lp, pa, size, fused_key_hash)
    run(lp, acm)
    return acm
