"""A vCPU that a processor is running: the registers it has, and where they rest when it does not."""

from __future__ import annotations

from typing import Final

from swtdx.arch import msrs
from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDCS, TDVPS
from swtdx.arch.units import MASK64, PAGE
from swtdx.arch.vmx_controls import BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, PENDING_DEBUG_BS
from swtdx.arch.x86 import RFLAGS_TF
from swtdx.machine.processor import LogicalProcessor
from swtdx.machine.vmx.exit import VmExit
from swtdx.machine.vmx.vmcs import Vmcs
from swtdx.module.objects.td import TDVPS_XBUFF, Td, Vp
from swtdx.module.served import Served
from swtdx.module.state import ModuleState

#: Where the GPRs rest in TDVPS page 0.
GPRS: Final = slice(TDVPS.gpr.offset, TDVPS.gpr.offset + 128)
#: MSRs that VM entry does not load: kept in TDVPS while the vCPU is not on a processor.
_MSRS: Final = (
    (msrs.IA32_SPEC_CTRL, TDVPS.ia32_spec_ctrl),
    (msrs.IA32_DS_AREA, TDVPS.ia32_ds_area),
    (msrs.IA32_UARCH_MISC_CTL, TDVPS.ia32_uarch_misc_ctl),
    (msrs.IA32_STAR, TDVPS.ia32_star),
    (msrs.IA32_LSTAR, TDVPS.ia32_lstar),
    (msrs.IA32_FMASK, TDVPS.ia32_fmask),
    (msrs.IA32_KERNEL_GS_BASE, TDVPS.ia32_kernel_gs_base),
    (msrs.IA32_TSC_AUX, TDVPS.ia32_tsc_aux),
)


class Vcpu:
    """A vCPU on a processor.

    ``gpr`` is the processor's register file while the TD runs; ``leaf`` the leaf whose TDCALL the module
    executes (the last one, when it executes none).
    """

    __slots__ = (
        "context", "entry_rip", "exit", "gpr", "leaf", "lp", "main", "module", "td", "tdcs", "vmcs", "vp",
    )  # fmt: skip

    leaf: Served

    def __init__(self, module: ModuleState, lp: LogicalProcessor, vp: Vp, vmcs: Vmcs) -> None:
        self.module = module
        self.lp = lp
        self.vp = vp
        self.vmcs = vmcs
        self.context = vmcs.context
        self.gpr = vmcs.context.gpr
        self.main = vp.main
        self.td = vp.td
        self.tdcs = vp.td.tdcs
        #: The last VM exit.
        self.exit: VmExit = lp.vmx.exit
        #: RIP at the last TD entry.
        self.entry_rip = vmcs.context.rip

    def refresh(self) -> None:
        """Look at the control structures' pages anew, after some page has left the cache."""
        module = self.module
        td = module.td(self.vp.td.tdr_hpa)
        if not td.pages:
            td.map_tdcs(module.keyhole)
        vp = module.vp(self.vp.hpa, td)
        vp.map_pages(module.keyhole)
        self.vp, self.main, self.td, self.tdcs = vp, vp.main, td, td.tdcs

    def advance(self) -> None:
        """RIP moves past the instruction that exited: a shadow of STI or MOV SS is over, TF asks for #DB."""
        context = self.context
        length = self.exit.length
        if not self.vmcs.debug_exceptions and context.skip(length):
            return
        if context.in_shadow:
            vmcs = self.vmcs
            kept = vmcs.read(f.GUEST_INTERRUPTIBILITY) & ~(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS)
            vmcs.write(f.GUEST_INTERRUPTIBILITY, kept)
        if context.rflags & RFLAGS_TF or self.vmcs.debug_exceptions:
            self._single_step()
        context.rip = context.rip + length & MASK64

    def _single_step(self) -> None:
        vmcs = self.vmcs
        kept = vmcs.read(f.GUEST_PENDING_DEBUG_EXCEPTIONS) & ~PENDING_DEBUG_BS
        step = self.context.rflags & RFLAGS_TF and not vmcs.read(f.GUEST_DEBUGCTL) & msrs.DEBUGCTL_BTF
        vmcs.write(f.GUEST_PENDING_DEBUG_EXCEPTIONS, kept | (PENDING_DEBUG_BS if step else 0))


def xbuff_image(vp: Vp) -> bytes:
    """The extended state as it rests in TDVPS (standard XSAVE format: modelled)."""
    return b"".join(bytes(page) for page in vp.pages[TDVPS_XBUFF : TDVPS_XBUFF + 3])


def load_state(lp: LogicalProcessor, vp: Vp, vmcs: Vmcs) -> None:
    """Bring to the processor what the VMCS does not carry (the vCPU is new here)."""
    main = vp.main
    context = vmcs.context
    context.cr2 = TDVPS.cr2.get(main)
    for number, field in ((0, TDVPS.dr0), (1, TDVPS.dr1), (2, TDVPS.dr2), (3, TDVPS.dr3), (6, TDVPS.dr6)):
        context.write_dr(number, field.get(main))
    for index, field in _MSRS:
        if not context.write_msr(index, field.get(main)):
            context.extra_msrs[index] = field.get(main)
    context.write_xstate(xbuff_image(vp)[: lp.machine.xstate_size])
    context.xcr0 = TDVPS.xcr0.get(main)


def save_state(lp: LogicalProcessor, vp: Vp, vmcs: Vmcs) -> None:
    """Put what the VMCS does not carry to rest in TDVPS."""
    main = vp.main
    context = vmcs.context
    TDVPS.cr2.set(main, context.cr2)
    for number, field in ((0, TDVPS.dr0), (1, TDVPS.dr1), (2, TDVPS.dr2), (3, TDVPS.dr3), (6, TDVPS.dr6)):
        field.set(main, context.read_dr(number))
    for index, field in _MSRS:
        value = context.read_msr(index)
        field.set(main, context.extra_msrs.get(index, 0) if value is None else value)
    TDVPS.xcr0.set(main, context.xcr0)
    image = context.read_xstate()
    for number in range(0, len(image), PAGE):
        part = image[number : number + PAGE]
        vp.pages[TDVPS_XBUFF + number // PAGE][: len(part)] = part


def flush_translations(lp: LogicalProcessor, td: Td) -> None:
    """INVEPT of the TD's address spaces on this processor."""
    eptp = TDCS.eptp.get(td.tdcs)
    for key, space in lp.spaces.items():
        if key[0] == eptp and key[1] == td.hkid:
            space.flush()


def vmcs_of(module: ModuleState, lp: LogicalProcessor, vp: Vp) -> Vmcs:
    """The vCPU's VMCS, active and current on ``lp``, with the rest of its registers loaded."""
    pa = vp.vmcs_pa
    known = pa in lp.vmx.active
    vmcs = lp.vmx.load(pa)
    if not known:
        load_state(lp, vp, vmcs)
    return vmcs
