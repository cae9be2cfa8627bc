"""A vCPU's registers in QEMU's format: a VMCB, a page of GPRs, a page of other state.

While a context is *live* on a processor, the part of its state that VM entry does not load (FS, GS,
LDTR, TR, the SYSCALL and SYSENTER MSRs, the extended state, TSC_AUX) is in the processor;
reading it makes the stub save it first, writing it makes the stub load it before the next entry.

Debug registers are written by us alone (all accesses of guests stop): what QEMU derives from them must be
the guest's while it runs, and gone when it does not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, MutableSequence
from typing import Final

from swtdx.arch import msrs, vmcs
from swtdx.arch.msrs import IA32_TSC_AUX
from swtdx.arch.units import MASK64, PAGE
from swtdx.arch.x86 import (
    AR_UNUSABLE,
    CR0_PG,
    CR4_CET,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PKE,
    CR4_PKS,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    RFLAGS_TF,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_MC,
    VECTOR_UD,
)
from swtdx.machine.engine.protocol import Event, Stop, debug_register
from swtdx.machine.engine.qemu import layout as at
from swtdx.machine.engine.qemu import vmcb
from swtdx.machine.engine.qemu.npt import IDENTITY_GPA

#: What has a meaning only with paging, and would act on a stand-in.
_CR4_PAGING: Final = CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_CET | CR4_PKS
_EFER_SVME: Final = 1 << 12
#: Control register intercepts: CR0, CR4 and CR8 writes and CR8 reads always; all of CR0, CR3, CR4
#: while paging is off, because the VMCB then holds a stand-in.
_CR_PAGED: Final = (0x0100, 0x0111)
_CR_UNPAGED: Final = (0x0119, 0x0119)
_DR_ALL: Final = 0xFFFF

#: The type of a breakpoint on I/O in DR7.
_DR7_IO: Final = 2
_DR7_GD: Final = 1 << 13
_DR6_BS: Final = 1 << 14

_SEGMENTS: Final = {
    "ES": vmcb.ES, "CS": vmcb.CS, "SS": vmcb.SS, "DS": vmcb.DS, "FS": vmcb.FS, "GS": vmcb.GS,
    "LDTR": vmcb.LDTR, "TR": vmcb.TR,
}  # fmt: skip
_LIVE_SEGMENTS: Final = ("FS", "GS", "LDTR", "TR")

# Of the fields that are looked at on every stop.
_RIP: Final = vmcb.RIP >> 3
_RFLAGS: Final = vmcb.RFLAGS >> 3
_CR3: Final = vmcb.CR3 >> 3
_CPL: Final = vmcb.CPL
_CS_FLAGS: Final = vmcb.CS + 3
_INT_STATE: Final = vmcb.INT_STATE
_EXIT_INT_INFO: Final = vmcb.EXIT_INT_INFO >> 2
_EVENT_VALID: Final = vmcb.EVENT_VALID

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


def _plain_fields() -> dict[int, tuple[struct.Struct, int, bool]]:
    """VMCS encoding to (codec, VMCB offset, whether the field is live state)."""
    table: dict[int, tuple[struct.Struct, int, bool]] = {
        vmcs.GUEST_RIP: (_U64, vmcb.RIP, False),
        vmcs.GUEST_RFLAGS: (_U64, vmcb.RFLAGS, False),
        vmcs.GUEST_SYSENTER_CS: (_U64, vmcb.SYSENTER_CS, True),
        vmcs.GUEST_SYSENTER_ESP: (_U64, vmcb.SYSENTER_ESP, True),
        vmcs.GUEST_SYSENTER_EIP: (_U64, vmcb.SYSENTER_EIP, True),
        vmcs.GUEST_GDTR_BASE: (_U64, vmcb.GDTR + 8, False),
        vmcs.GUEST_GDTR_LIMIT: (_U32, vmcb.GDTR + 4, False),
        vmcs.GUEST_IDTR_BASE: (_U64, vmcb.IDTR + 8, False),
        vmcs.GUEST_IDTR_LIMIT: (_U32, vmcb.IDTR + 4, False),
    }
    for name, offset in _SEGMENTS.items():
        live = name in _LIVE_SEGMENTS
        table[getattr(vmcs, f"GUEST_{name}_SELECTOR")] = (_U16, offset, live)
        table[getattr(vmcs, f"GUEST_{name}_LIMIT")] = (_U32, offset + 4, live)
        table[getattr(vmcs, f"GUEST_{name}_BASE")] = (_U64, offset + 8, live)
    return table


_PLAIN: Final = _plain_fields()
_ACCESS_RIGHTS: Final = {
    getattr(vmcs, f"GUEST_{name}_ACCESS_RIGHTS"): (offset + 2, name in _LIVE_SEGMENTS)
    for name, offset in _SEGMENTS.items()
}
#: MSRs in the VMCB that VMLOAD and VMSAVE carry.
_MSRS: Final = {
    msrs.IA32_SYSENTER_CS: vmcb.SYSENTER_CS,
    msrs.IA32_SYSENTER_ESP: vmcb.SYSENTER_ESP,
    msrs.IA32_SYSENTER_EIP: vmcb.SYSENTER_EIP,
    msrs.IA32_STAR: vmcb.STAR,
    msrs.IA32_LSTAR: vmcb.LSTAR,
    msrs.IA32_CSTAR: vmcb.CSTAR,
    msrs.IA32_FMASK: vmcb.SFMASK,
    msrs.IA32_FS_BASE: vmcb.FS + 8,
    msrs.IA32_GS_BASE: vmcb.GS + 8,
    msrs.IA32_KERNEL_GS_BASE: vmcb.KERNEL_GS_BASE,
}


class QemuContext:
    """See :class:`swtdx.machine.engine.protocol.GuestContext`."""

    __slots__ = (
        "_ahead",
        "_b",
        "_cr0",
        "_cr3",
        "_cr4",
        "_dr",
        "_dr7",
        "_efer",
        "_exceptions",
        "_i",
        "_image",
        "_memory",
        "_nmi_blocked",
        "_other",
        "_save",
        "_software",
        "_stepping",
        "_tsc",
        "armed",
        "base",
        "doubts",
        "event",
        "extra_msrs",
        "gpr",
        "gpr_bytes",
        "interrupt_status",
        "live_on",
        "needs_load",
        "parked",
        "q",
        "saved",
        "unpaged",
        "virq",
        "yields",
    )  # fmt: skip
    #: Instructions are in guest memory.
    code: Final[bytes | None] = None
    #: Whether it is the root world's.
    root = False

    def __init__(
        self, memory: memoryview, base: int, save: Callable[[QemuContext], None], ahead: int = 0
    ) -> None:
        """``base``: the context's pages in engine memory; ``save`` brings live state to them; ``ahead``: how
        far the machine's time-stamp counter is ahead of QEMU's."""
        self._save = save
        self._ahead = ahead
        self._memory = memory
        self._image = bytes(at.CONTEXT_SIZE)
        self.unpark(base)
        self.event = Event()
        self.live_on: int | None = None
        #: Whether the pages hold the live state (else it is only in the processor).
        self.saved = True
        self.needs_load = True
        self.virq: int | None = None
        self.interrupt_status = 0
        #: Guest MSRs that only the microcode knows, by index.
        self.extra_msrs: dict[int, int] = {}
        self._other: dict[int, int] = {}
        self.unpaged = True
        self._cr0 = 0x21
        self._cr3 = 0
        self._cr4 = 0
        self._efer = 0
        self._dr = [0] * 4
        self._dr7 = at.DR7_OFF
        self._exceptions = 0
        self._software = False
        self._tsc = False
        #: Whether PAUSE stops the guest.
        self.yields = False
        #: Whether INT3 and INT n stop the guest whatever #BP does; None: in the next run they do not at all.
        self.doubts: bool | None = False
        self._nmi_blocked = False
        #: DR6 of a guest whose IRET is being stepped over, else None.
        self._stepping: int | None = None
        #: DR7 if QEMU is to watch for a breakpoint while the guest runs, else 0.
        self.armed = 0
        self._initialise()

    def unpark(self, base: int) -> None:
        """Lie at ``base`` in engine memory from now on."""
        memory = self._memory
        memory[base : base + at.CONTEXT_SIZE] = self._image
        self._image = b""
        self.parked = False
        self.base = base
        self._b = memory[base : base + PAGE]
        self.q = self._b.cast("Q")
        self._i = self._b.cast("I")
        registers = memory[base + at.CTX_GPRS : base + at.CTX_GPRS + 128]
        self.gpr: MutableSequence[int] = registers.cast("Q")  # type: ignore[assignment]
        self.gpr_bytes = registers
        self.q[vmcb.MSRPM_PA >> 3] = base + at.CTX_MSRPM

    def park(self) -> int:
        """Leave engine memory; where it was there.  It must not be live, and not be used until unparked."""
        self._image = bytes(self._memory[self.base : self.base + at.CONTEXT_SIZE])
        self.parked = True
        return self.base

    def _initialise(self) -> None:
        b, base = self._b, self.base
        self._apply_intercepts()
        self._apply_exceptions()
        _U64.pack_into(b, vmcb.IOPM_PA, at.IOPM)
        self._memory[base + at.CTX_MSRPM : base + at.CTX_MSRPM + 0x2000] = b"\xff" * 0x2000
        _U32.pack_into(b, vmcb.ASID, 1)
        _U32.pack_into(b, vmcb.INT_CTL, vmcb.V_INTR_MASKING | vmcb.V_IGN_TPR)
        _U64.pack_into(b, vmcb.NESTED_CTL, vmcb.NESTED_PAGING)
        _U16.pack_into(b, vmcb.INTERCEPT_DR, _DR_ALL)
        _U16.pack_into(b, vmcb.INTERCEPT_DR + 2, _DR_ALL)
        _U64.pack_into(b, vmcb.DR6, debug_register(6, 0))
        _U64.pack_into(b, vmcb.DR7, at.DR7_OFF)
        _U64.pack_into(b, vmcb.RFLAGS, 2)
        extra = base + at.CTX_EXTRA
        _U64.pack_into(self._memory, extra + at.EX_XCR0, 1)
        struct.pack_into("<HHI", self._memory, extra, 0x37F, 0, 0)  # FCW
        _U32.pack_into(self._memory, extra + 24, 0x1F80)  # MXCSR
        self._apply_paging()

    # ------------------------------------------------------------------ control registers
    def _apply_paging(self) -> None:
        """Write CR0, CR3, CR4, EFER to the VMCB.

        QEMU 7.2 does not walk the nested table while CR0.PG is 0 (``excp_helper.c``), so a guest
        with paging off runs on identity page tables of ours (npt.py); it cannot tell, since its accesses
        to the control registers exit.
        """
        q = self.q
        if self._cr0 & CR0_PG:
            self.unpaged = False
            reads, writes = _CR_PAGED
            q[vmcb.CR0 >> 3] = self._cr0
            q[vmcb.CR3 >> 3] = self._cr3
            q[vmcb.CR4 >> 3] = self._cr4
            q[vmcb.EFER >> 3] = self._efer | _EFER_SVME
        else:
            self.unpaged = True
            reads, writes = _CR_UNPAGED
            q[vmcb.CR0 >> 3] = self._cr0 | CR0_PG
            q[vmcb.CR3 >> 3] = IDENTITY_GPA
            q[vmcb.CR4 >> 3] = self._cr4 & ~_CR4_PAGING | CR4_PAE
            q[vmcb.EFER >> 3] = self._efer & ~(EFER_LME | EFER_LMA) | _EFER_SVME
        _U16.pack_into(self._b, vmcb.INTERCEPT_CR, reads)
        _U16.pack_into(self._b, vmcb.INTERCEPT_CR + 2, writes)

    @property
    def cr0(self) -> int:
        """CR0 as the guest sees it."""
        return self._cr0

    @cr0.setter
    def cr0(self, value: int) -> None:
        self.switch_paging(value, self._efer)

    @property
    def cr3(self) -> int:
        """CR3 as the guest sees it."""
        return self._cr3 if self.unpaged else self.q[_CR3]

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr3 = value
        if not self.unpaged:
            self.q[vmcb.CR3 >> 3] = value

    @property
    def cr4(self) -> int:
        """CR4 as the guest sees it."""
        return self._cr4

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._cr3 = self.cr3
        self._cr4 = value
        self._apply_paging()

    @property
    def efer(self) -> int:
        """EFER as the guest sees it."""
        return self._efer

    @efer.setter
    def efer(self, value: int) -> None:
        self.switch_paging(self._cr0, value)

    def switch_paging(self, cr0: int, efer: int) -> None:
        """Load CR0 and EFER together (turning paging on or off changes EFER.LMA)."""
        self._cr3 = self.cr3
        self._cr0 = cr0
        self._efer = efer
        self._apply_paging()

    # ------------------------------------------------------------------ hot registers
    @property
    def rip(self) -> int:
        """Instruction pointer."""
        return self.q[_RIP]

    @rip.setter
    def rip(self, value: int) -> None:
        self.q[_RIP] = value

    def skip(self, length: int) -> bool:
        """Move RIP ``length`` bytes on; False, and nothing done, in a shadow of STI or MOV SS or with TF."""
        q = self.q
        if self._b[_INT_STATE] & 1 or q[_RFLAGS] & RFLAGS_TF:
            return False
        q[_RIP] = q[_RIP] + length & MASK64
        return True

    @property
    def rflags(self) -> int:
        """Flags."""
        return self.q[_RFLAGS]

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.q[_RFLAGS] = value

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self._b[_CPL]

    @property
    def cs_base(self) -> int:
        """Base of CS."""
        return self.q[(vmcb.CS + 8) >> 3]

    @property
    def long_mode(self) -> bool:
        """Whether the guest executes 64-bit code (EFER.LMA and CS.L)."""
        return bool(self._efer & EFER_LMA and self._b[_CS_FLAGS] & 2)

    @property
    def cr2(self) -> int:
        """CR2."""
        return self.q[vmcb.CR2 >> 3]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.q[vmcb.CR2 >> 3] = value

    @property
    def in_shadow(self) -> bool:
        """Whether the stop came in an STI or MOV SS shadow."""
        return bool(self._b[_INT_STATE] & 1)

    def set_tsc_offset(self, offset: int) -> None:
        """What RDTSC adds to the host's TSC (modulo 2**64)."""
        self.q[vmcb.TSC_OFFSET >> 3] = offset + self._ahead & (1 << 64) - 1

    def intercept_tsc(self, on: bool) -> None:
        """Whether RDTSC and RDTSCP stop (for a TSC that is not the host's frequency)."""
        self._tsc = on
        self._apply_intercepts()

    def yield_at_pause(self, on: bool) -> None:
        """Whether the guest stops where it waits for another processor (PAUSE)."""
        self.yields = on
        self._apply_intercepts()

    def doubt_interrupts(self, on: bool) -> None:
        """Whether the guest stops at INT3 and INT n; not in the one run after :meth:`believe_interrupt`."""
        if self.doubts is None:
            # The run that begins now; the next one finds that something has changed.
            self.doubts = not on
            return
        self.doubts = on
        self._apply_intercepts()

    def believe_interrupt(self) -> None:
        """Let the next run execute the INT n that the guest has stopped at, if that is what is there."""
        self.doubts = None
        self._apply_intercepts()

    def _apply_intercepts(self) -> None:
        extra = vmcb.intercept(vmcb.EXIT_RDTSC, vmcb.EXIT_RDTSCP) if self._tsc else 0
        if self._nmi_blocked:
            extra |= vmcb.intercept(vmcb.EXIT_IRET)
        if self.yields:
            extra |= vmcb.intercept(vmcb.EXIT_PAUSE)
        if self.doubts or (self._software and self.doubts is not None):
            # To QEMU an INT3 is one of them, and no exception.
            extra |= vmcb.intercept(vmcb.EXIT_SWINT)
        _U64.pack_into(self._b, vmcb.INTERCEPT, vmcb.INTERCEPTS | extra)

    def intercept_exceptions(self, bitmap: int) -> None:
        """Which exceptions stop, besides those that always do."""
        self._exceptions = bitmap
        self._apply_exceptions()
        software = bool(bitmap >> VECTOR_BP & 1)
        if software is not self._software:
            self._software = software
            self._apply_intercepts()

    def _apply_exceptions(self) -> None:
        # #UD is how instructions that QEMU does not know arrive; #MC would be QEMU's own.  A #DB clears
        # DR7.GD, which QEMU does not.
        bitmap = self._exceptions | 1 << VECTOR_UD | 1 << VECTOR_MC
        if self._dr7 & _DR7_GD:
            bitmap |= 1 << VECTOR_DB
        if self._stepping is not None:
            bitmap = 0xFFFFFFFF
        _U32.pack_into(self._b, vmcb.INTERCEPT_EXCEPTIONS, bitmap)

    def allow_msr(self, index: int, *, read: bool, write: bool) -> None:
        """Let RDMSR/WRMSR of ``index`` run natively (True) or stop (False)."""
        if index < 0x2000:
            bit = index * 2
        elif 0xC0000000 <= index < 0xC0002000:
            bit = (0x2000 + index - 0xC0000000) * 2
        else:
            raise ValueError(f"MSR {index:#x} always stops")
        where = self.base + at.CTX_MSRPM + (bit >> 3)
        keep = self._memory[where] & ~(3 << (bit & 7))
        self._memory[where] = keep | (0 if read else 1 << (bit & 7)) | (0 if write else 2 << (bit & 7))

    # ------------------------------------------------------------------ by encoding
    def _live(self) -> None:
        """Make the pages hold the live state."""
        if not self.saved:
            self._save(self)

    def read(self, encoding: int) -> int:
        """A guest-state field (0 for those that the engine does not use)."""
        plain = _PLAIN.get(encoding)
        if plain is not None:
            codec, offset, live = plain
            if live:
                self._live()
            value: int = codec.unpack_from(self._b, offset)[0]
            return value
        rights = _ACCESS_RIGHTS.get(encoding)
        if rights is not None:
            offset, live = rights
            if live:
                self._live()
            attributes: int = _U16.unpack_from(self._b, offset)[0]
            value = attributes & 0xFF | (attributes & 0xF00) << 4
            return value if attributes & 0x80 else value | AR_UNUSABLE
        match encoding:
            case vmcs.GUEST_RSP:
                return self.gpr[4]
            case vmcs.GUEST_CR0:
                return self.cr0
            case vmcs.GUEST_CR3:
                return self.cr3
            case vmcs.GUEST_CR4:
                return self.cr4
            case vmcs.GUEST_EFER:
                return self.efer
            case vmcs.GUEST_DR7:
                return self._dr7
            case vmcs.GUEST_INTERRUPTIBILITY:
                return int(self.in_shadow) | self._nmi_blocked << 3
            case vmcs.GUEST_INTERRUPT_STATUS:
                return self.interrupt_status
        return self._other.get(encoding, 0)

    def write(self, encoding: int, value: int) -> None:
        """Store a guest-state field."""
        plain = _PLAIN.get(encoding)
        if plain is not None:
            codec, offset, live = plain
            if live:
                self._live()
                self.needs_load = True
            codec.pack_into(self._b, offset, value)
            return
        rights = _ACCESS_RIGHTS.get(encoding)
        if rights is not None:
            offset, live = rights
            if live:
                self._live()
                self.needs_load = True
            attributes = 0 if value & AR_UNUSABLE else value & 0xFF | value >> 4 & 0xF00
            _U16.pack_into(self._b, offset, attributes)
            if encoding == vmcs.GUEST_SS_ACCESS_RIGHTS:
                self._b[vmcb.CPL] = value >> 5 & 3
            return
        match encoding:
            case vmcs.GUEST_RSP:
                self.gpr[4] = value
            case vmcs.GUEST_CR0:
                self.cr0 = value
            case vmcs.GUEST_CR3:
                self.cr3 = value
            case vmcs.GUEST_CR4:
                self.cr4 = value
            case vmcs.GUEST_EFER:
                self.efer = value
            case vmcs.GUEST_DR7:
                self.write_dr(7, value)
            case vmcs.GUEST_INTERRUPTIBILITY:
                self._b[vmcb.INT_STATE] = value & 1
                self.nmi_blocked = bool(value >> 3 & 1)
            case vmcs.GUEST_INTERRUPT_STATUS:
                self.interrupt_status = value
            case _:
                self._other[encoding] = value

    def read_msr(self, index: int) -> int | None:
        """An MSR that VM entry loads natively, or None."""
        if index == IA32_TSC_AUX:
            self._live()
            aux: int = _U32.unpack_from(self._memory, self.base + at.CTX_EXTRA + at.EX_TSC_AUX)[0]
            return aux
        offset = _MSRS.get(index)
        if offset is None:
            return None
        self._live()
        return self.q[offset >> 3]

    def write_msr(self, index: int, value: int) -> bool:
        """Store such an MSR; False when it is not one."""
        if index == IA32_TSC_AUX:
            self._live()
            _U32.pack_into(self._memory, self.base + at.CTX_EXTRA + at.EX_TSC_AUX, value & 0xFFFFFFFF)
        else:
            offset = _MSRS.get(index)
            if offset is None:
                return False
            self._live()
            self.q[offset >> 3] = value
        self.needs_load = True
        return True

    def read_dr(self, number: int) -> int:
        """DR0-DR3, DR6 or DR7."""
        if number == 6:
            return self.q[vmcb.DR6 >> 3]
        return self._dr7 if number == 7 else self._dr[number]

    def write_dr(self, number: int, value: int) -> None:
        """Store DR0-DR3, DR6 or DR7; reserved bits keep their values."""
        if number == 6:
            self.q[vmcb.DR6 >> 3] = debug_register(6, value)
            return
        if number == 7:
            self._dr7 = debug_register(7, value)
            self._apply_exceptions()
        else:
            self._dr[number] = value
        self._live()
        self._set_breakpoints()
        self.needs_load = True

    def _set_breakpoints(self) -> None:
        """Choose those breakpoints that QEMU is to watch for, and give their addresses to the stub.

        Not those on I/O, which leaves the guest before they could hit, nor those that the stub itself would
        hit on its way into the guest and out of it.  Addresses are aligned as a processor does it.
        """
        dr7 = self._dr7
        for number in range(4):
            kind, size = dr7 >> 16 + 4 * number & 3, (1, 2, 8, 4)[dr7 >> 18 + 4 * number & 3]
            address = self._dr[number] & -size if kind else self._dr[number]
            ours = at.STUB_STACKS if kind else at.STUB_CODE
            if kind == _DR7_IO or (address < ours.stop and address + size > ours.start):
                dr7 &= ~(3 << 2 * number)
            _U64.pack_into(self._memory, self.base + at.CTX_EXTRA + at.EX_DR0 + 8 * number, address)
        # Without GD: the stub has to take the breakpoints back.
        self.armed = dr7 & ~_DR7_GD if dr7 & 0xFF else 0
        self.q[vmcb.DR7 >> 3] = self.armed or at.DR7_OFF

    @property
    def xcr0(self) -> int:
        """XCR0."""
        self._live()
        value: int = _U64.unpack_from(self._memory, self.base + at.CTX_EXTRA + at.EX_XCR0)[0]
        return value

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self._live()
        _U64.pack_into(self._memory, self.base + at.CTX_EXTRA + at.EX_XCR0, value)
        self.needs_load = True

    def read_xstate(self) -> bytes:
        """The extended state as a standard-format XSAVE image of 3 KiB."""
        self._live()
        start = self.base + at.CTX_EXTRA
        return bytes(self._memory[start : start + at.EX_XSAVE_SIZE])

    def write_xstate(self, image: bytes) -> None:
        """Load a standard-format XSAVE image (at most 3 KiB).

        Raises:
            ValueError: the image is larger than the engine's area.
        """
        if len(image) > at.EX_XSAVE_SIZE:
            raise ValueError(f"an XSAVE image of {len(image)} bytes does not fit in {at.EX_XSAVE_SIZE}")
        self._live()
        start = self.base + at.CTX_EXTRA
        self._memory[start : start + len(image)] = image
        self.needs_load = True

    # ------------------------------------------------------------------ NMIs
    @property
    def nmi_blocked(self) -> bool:
        """Blocking by NMI.  QEMU keeps it for its own NMIs only, so IRET stops meanwhile."""
        return self._nmi_blocked

    @nmi_blocked.setter
    def nmi_blocked(self, value: bool) -> None:
        if value != self._nmi_blocked:
            self._nmi_blocked = value
            self._apply_intercepts()

    def step(self) -> bool:
        """Have the next run end behind the event that is injected, or behind an IRET.

        The latter by single-stepping: IRET loads RFLAGS, so that TF does not survive it; the #DB, and any
        fault that would push TF, are intercepted.
        """
        if self.injecting:
            _U32.pack_into(self._memory, self.base + at.CTX_EXTRA + at.EX_STEP, 1)
            return True
        if self.rflags & RFLAGS_TF:
            return False
        self._stepping = self.q[vmcb.DR6 >> 3]
        self.rflags |= RFLAGS_TF
        self._apply_exceptions()
        return True

    def stepped(self, event: Event) -> None:
        """The run that was to step has ended; make it ``Stop.STEP`` if that was why."""
        if self._stepping is None:
            if event.stop is Stop.INTERRUPT and not self.injecting and self.undelivered() is None:
                event.stop = Stop.STEP
            return
        if event.stop is Stop.EXCEPTION and event.vector == VECTOR_DB and self.q[vmcb.DR6 >> 3] & _DR6_BS:
            event.stop = Stop.STEP
            self.q[vmcb.DR6 >> 3] = self._stepping
        else:
            # It has faulted, or not begun.
            self.rflags &= ~RFLAGS_TF
        self._stepping = None
        self._apply_exceptions()

    # ------------------------------------------------------------------ events
    def inject(self, vector: int, kind: int, error_code: int | None) -> None:
        """Deliver an event at the next entry; ``kind`` is a VMX interruption type.

        Software interrupts are delivered by executing the instruction again, so they need nothing.
        """
        if kind in (4, 5, 6):
            return
        word = vector | kind << 8 | vmcb.EVENT_VALID
        if error_code is not None:
            word |= vmcb.EVENT_HAS_ERROR
            self._i[vmcb.EVENT_INJ_ERROR >> 2] = error_code
        self._i[vmcb.EVENT_INJ >> 2] = word

    @property
    def injecting(self) -> bool:
        """Whether an event waits to be delivered."""
        return bool(self._i[vmcb.EVENT_INJ >> 2] & vmcb.EVENT_VALID)

    def withdraw(self) -> tuple[int, int, int | None] | None:
        """Take back an event that was to be injected at the next entry."""
        word = self._i[vmcb.EVENT_INJ >> 2]
        if not word & vmcb.EVENT_VALID:
            return None
        self._i[vmcb.EVENT_INJ >> 2] = 0
        error = self._i[vmcb.EVENT_INJ_ERROR >> 2] if word & vmcb.EVENT_HAS_ERROR else None
        return word & 0xFF, word >> 8 & 7, error

    def undelivered(self) -> tuple[int, int, int | None] | None:
        """The event whose delivery the last stop interrupted: (vector, VMX type, error code)."""
        word = self._i[_EXIT_INT_INFO]
        if not word & _EVENT_VALID:
            return None
        vector, kind = word & 0xFF, word >> 8 & 7
        if kind == 3 and vector > 31:
            # QEMU reports an external interrupt as an exception; its virtual interrupt is still
            # pending then, so there is nothing to deliver again.
            return None
        error = self._i[vmcb.EXIT_INT_INFO_ERROR >> 2] if word & vmcb.EVENT_HAS_ERROR else None
        return vector, kind, error

    def nothing_undelivered(self) -> None:
        """The guest has not run, and so nothing was being delivered."""
        self._i[vmcb.EXIT_INT_INFO >> 2] = 0

    def offer_interrupt(self, vector: int | None) -> None:
        """Set or withdraw the virtual interrupt."""
        if vector is None and self.virq is None:
            return
        self.virq = vector
        control = vmcb.V_INTR_MASKING | vmcb.V_IGN_TPR
        if vector is not None:
            control |= vmcb.V_IRQ | (vector >> 4) << 16
            self._i[vmcb.INT_VECTOR >> 2] = vector
        self._i[vmcb.INT_CTL >> 2] = control

    def interrupt_taken(self) -> bool:
        """Whether the offered interrupt was delivered."""
        if self.virq is None:
            return False
        return not self._i[vmcb.INT_CTL >> 2] & vmcb.V_IRQ
