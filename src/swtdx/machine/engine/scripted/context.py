"""The registers of a scripted vCPU: plain integers, by VMCS encoding and by name."""

from __future__ import annotations

import struct
from collections.abc import MutableSequence
from typing import Final

from swtdx.arch import msrs
from swtdx.arch import vmcs as f
from swtdx.arch.msrs import IA32_TSC_AUX
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import AR_DB, AR_L, EFER_LMA, EFER_LME, RFLAGS_IF, RFLAGS_TF
from swtdx.machine.engine.protocol import FIELD_MSRS, OTHER_MSRS, Event, debug_register

#: An event to deliver: vector, VMX interruption type, error code.
Injection = tuple[int, int, int | None]

#: What start-up code sets: PE, MP, ET, WP, PG; PAE, OSFXSR, OSXMMEXCPT.
_CR0_STARTED: Final = 0x80010013
_CR4_STARTED: Final = 0x620
#: VMX interruption types that are delivered by executing the instruction again.
_SOFTWARE: Final = (4, 5, 6)
XSTATE_SIZE: Final = 0xC00


class ScriptedContext:
    """See :class:`swtdx.machine.engine.protocol.GuestContext`.

    It ends with VMCLEAR; the script that uses it goes on in the vCPU's next one.
    """

    def __init__(self) -> None:
        self.event = Event()
        #: The registers as 128 bytes and as 16 integers; one is a view of the other.
        self.gpr_bytes = memoryview(bytearray(128))
        self.gpr: MutableSequence[int] = self.gpr_bytes.cast("Q")  # type: ignore[assignment]
        self.rip = 0
        self.rflags = 2
        self.cr0 = 0x21
        self.cr2 = 0
        self.cr3 = 0
        self.cr4 = 0
        self.efer = 0
        self.xcr0 = 1
        #: The bytes at RIP while an instruction of the script is under way.
        self.code: bytes | None = None
        #: Guest MSRs that only the microcode knows, by index.
        self.extra_msrs: dict[int, int] = {}
        #: Vectors of the interrupts that the script has taken (its own list, see ``Script``).
        self.interrupts: list[int] = []
        #: NMIs are blocked until an IRET, which stops meanwhile.
        self.nmi_blocked = False
        #: The next run ends behind an event or an IRET.
        self.stepping = False
        #: In the shadow of STI: the next instruction comes before any interrupt.
        self.shadow = False
        self.injection: Injection | None = None
        self.offered: int | None = None
        self.tsc_offset = 0
        self.tsc_intercepted = False
        self.exceptions_intercepted = 0
        self._taken = False
        self.interrupt_status = 0
        self._fields: dict[int, int] = {}
        self._msrs = dict.fromkeys((*OTHER_MSRS, msrs.IA32_CSTAR), 0)
        self._dr = {number: debug_register(number, 0) for number in (0, 1, 2, 3, 6, 7)}
        self._xstate = bytearray(XSTATE_SIZE)
        struct.pack_into("<H", self._xstate, 0, 0x37F)  # FCW
        struct.pack_into("<I", self._xstate, 24, 0x1F80)  # MXCSR

    # ------------------------------------------------------------------ by encoding
    def read(self, encoding: int) -> int:
        """A guest-state field (0 for one that was never written)."""
        match encoding:
            case f.GUEST_RIP:
                return self.rip
            case f.GUEST_RSP:
                return self.gpr[4]
            case f.GUEST_RFLAGS:
                return self.rflags
            case f.GUEST_CR0:
                return self.cr0
            case f.GUEST_CR3:
                return self.cr3
            case f.GUEST_CR4:
                return self.cr4
            case f.GUEST_EFER:
                return self.efer
            case f.GUEST_DR7:
                return self._dr[7]
            case f.GUEST_INTERRUPTIBILITY:
                return int(self.shadow) | self.nmi_blocked << 3
            case f.GUEST_INTERRUPT_STATUS:
                return self.interrupt_status
        return self._fields.get(encoding, 0)

    def write(self, encoding: int, value: int) -> None:
        """Store a guest-state field."""
        match encoding:
            case f.GUEST_RIP:
                self.rip = value
            case f.GUEST_RSP:
                self.gpr[4] = value
            case f.GUEST_RFLAGS:
                self.rflags = value
            case f.GUEST_CR0:
                self.cr0 = value
            case f.GUEST_CR3:
                self.cr3 = value
            case f.GUEST_CR4:
                self.cr4 = value
            case f.GUEST_EFER:
                self.efer = value
            case f.GUEST_DR7:
                self.write_dr(7, value)
            case f.GUEST_INTERRUPTIBILITY:
                self.shadow = bool(value & 1)
                self.nmi_blocked = bool(value >> 3 & 1)
            case f.GUEST_INTERRUPT_STATUS:
                self.interrupt_status = value
            case _:
                self._fields[encoding] = value

    @property
    def cpl(self) -> int:
        """Current privilege level: the DPL of SS."""
        return self._fields.get(f.GUEST_SS_ACCESS_RIGHTS, 0) >> 5 & 3

    @cpl.setter
    def cpl(self, value: int) -> None:
        for field in (f.GUEST_SS_ACCESS_RIGHTS, f.GUEST_CS_ACCESS_RIGHTS):
            self._fields[field] = self._fields.get(field, 0) & ~0x60 | value << 5

    @property
    def cs_base(self) -> int:
        """Base of CS."""
        return self._fields.get(f.GUEST_CS_BASE, 0)

    @property
    def long_mode(self) -> bool:
        """Whether the guest executes 64-bit code (EFER.LMA and CS.L)."""
        return bool(self.efer & EFER_LMA and self._fields.get(f.GUEST_CS_ACCESS_RIGHTS, 0) & AR_L)

    @property
    def code_bits(self) -> int:
        """64, 32 or 16."""
        if self.long_mode:
            return 64
        return 32 if self._fields.get(f.GUEST_CS_ACCESS_RIGHTS, 0) & AR_DB else 16

    def switch_paging(self, cr0: int, efer: int) -> None:
        """Load CR0 and EFER together."""
        self.cr0 = cr0
        self.efer = efer

    def enter_long_mode(self) -> None:
        """What a guest's start-up code does to get from protected mode to 64-bit code."""
        self.cr4 |= _CR4_STARTED
        self.cr0 |= _CR0_STARTED
        self.efer |= EFER_LME | EFER_LMA
        rights = self._fields.get(f.GUEST_CS_ACCESS_RIGHTS, 0)
        self._fields[f.GUEST_CS_ACCESS_RIGHTS] = rights & ~AR_DB | AR_L

    # ------------------------------------------------------------------ other state
    def read_msr(self, index: int) -> int | None:
        """An MSR that VM entry loads or that the context keeps, or None."""
        field = FIELD_MSRS.get(index)
        return self._msrs.get(index) if field is None else self._fields.get(field, 0)

    def write_msr(self, index: int, value: int) -> bool:
        """Store such an MSR; False when it is not one."""
        if index in FIELD_MSRS:
            self._fields[FIELD_MSRS[index]] = value
        elif index in self._msrs:
            self._msrs[index] = value & 0xFFFFFFFF if index == IA32_TSC_AUX else value
        else:
            return False
        return True

    def allow_msr(self, index: int, *, read: bool, write: bool) -> None:
        """Nothing: every RDMSR and WRMSR stops, and the microcode carries out what is allowed."""

    def believe_interrupt(self) -> None:
        """Nothing: a script has no code that could be old."""

    def read_dr(self, number: int) -> int:
        """DR0-DR3, DR6 or DR7."""
        return self._dr[number]

    def write_dr(self, number: int, value: int) -> None:
        """Store DR0-DR3, DR6 or DR7; reserved bits keep their values."""
        self._dr[number] = debug_register(number, value)

    def read_xstate(self) -> bytes:
        """The extended state as a standard-format XSAVE image of 3 KiB."""
        return bytes(self._xstate)

    def write_xstate(self, image: bytes) -> None:
        """Load a standard-format XSAVE image (at most 3 KiB).

        Raises:
            ValueError: the image is larger.
        """
        if len(image) > XSTATE_SIZE:
            raise ValueError(f"an XSAVE image of {len(image)} bytes does not fit in {XSTATE_SIZE}")
        self._xstate[: len(image)] = image

    def set_tsc_offset(self, offset: int) -> None:
        """What RDTSC adds to the machine's TSC (modulo 2**64)."""
        self.tsc_offset = offset

    def intercept_tsc(self, on: bool) -> None:
        """Whether RDTSC and RDTSCP stop."""
        self.tsc_intercepted = on

    def intercept_exceptions(self, bitmap: int) -> None:
        """Which exceptions that instructions raise stop instead of being delivered."""
        self.exceptions_intercepted = bitmap

    def skip(self, length: int) -> bool:
        """Move RIP ``length`` bytes on; False, and nothing is done, in a shadow of STI or with TF."""
        if self.shadow or self.rflags & RFLAGS_TF:
            return False
        self.rip = self.rip + length & MASK64
        return True

    # ------------------------------------------------------------------ events
    def step(self) -> bool:
        """Have the next run end behind the event that is injected, or behind an IRET."""
        self.stepping = True
        return True

    def stepped(self, event: Event) -> None:
        """The run has ended, for whatever reason."""
        self.stepping = False

    @property
    def in_shadow(self) -> bool:
        """Whether the stop came in an STI shadow."""
        return self.shadow

    @property
    def injecting(self) -> bool:
        """Whether an event waits to be delivered."""
        return self.injection is not None

    def inject(self, vector: int, kind: int, error_code: int | None) -> None:
        """Deliver an event at the next run; software interrupts need nothing (see the QEMU engine)."""
        if kind not in _SOFTWARE:
            self.injection = (vector, kind, error_code)

    def withdraw(self) -> Injection | None:
        """Take back an event that was to be injected."""
        injection, self.injection = self.injection, None
        return injection

    def undelivered(self) -> Injection | None:
        """None: delivery touches no memory here, so nothing interrupts it."""
        return None

    def offer_interrupt(self, vector: int | None) -> None:
        """Deliver external interrupt ``vector`` as soon as the script can take it; None: none."""
        self.offered = vector
        self._taken = False

    def interrupt_taken(self) -> bool:
        """Whether the offered interrupt was delivered since it was offered."""
        return self._taken

    def take_offered(self) -> int | None:
        """The offered interrupt, if the guest can take it now; from then on it is delivered."""
        if self.offered is None or self.shadow or not self.rflags & RFLAGS_IF:
            return None
        vector, self.offered = self.offered, None
        self._taken = True
        return vector
