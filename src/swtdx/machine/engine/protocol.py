"""What an engine is: something that executes guest instructions until it cannot go on.

An engine knows nothing of TDX, nor of EPT formats.  It has, for every vCPU it is given, a
:class:`GuestContext` (the registers, as the processor holds them while a VMCS is current) and, for
every address space, a :class:`TranslationCache` that maps GPAs to frames, as a TLB does.  It stops
with an :class:`Event`; the VMX microcode (``machine.vmx``) decides what the event means: a miss to
be filled, a native instruction to be carried out, or a VM exit.

Numbers are those of VMX: basic exit reasons, exit qualifications, VMCS encodings.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping, MutableSequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from swtdx.arch import msrs
from swtdx.arch import vmcs as f

#: Guest MSRs that every engine keeps and whose accesses it can carry out: those that are VMCS fields, and
#: those that no field holds.
FIELD_MSRS: Final[dict[int, int]] = {
    msrs.IA32_SYSENTER_CS: f.GUEST_SYSENTER_CS,
    msrs.IA32_SYSENTER_ESP: f.GUEST_SYSENTER_ESP,
    msrs.IA32_SYSENTER_EIP: f.GUEST_SYSENTER_EIP,
    msrs.IA32_FS_BASE: f.GUEST_FS_BASE,
    msrs.IA32_GS_BASE: f.GUEST_GS_BASE,
}
OTHER_MSRS: Final = (
    msrs.IA32_STAR, msrs.IA32_LSTAR, msrs.IA32_FMASK, msrs.IA32_KERNEL_GS_BASE, msrs.IA32_TSC_AUX,
)  # fmt: skip


class EngineError(RuntimeError):
    """The engine cannot be started or has failed; the message says what to do."""


class Wakeup(threading.Event):
    """What a processor that waits is woken by; ``told`` is called, too, by whoever sets it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: Callable[[], None] | None = None

    def set(self) -> None:
        """Wake the processor.  Any thread."""
        super().set()
        told = self.told
        if told is not None:
            told()


@enum.unique
class Stop(enum.IntEnum):
    """Why an engine stopped."""

    MISS = 0  #: no translation for ``event.gpa`` with ``event.access``
    INTERRUPT = 1  #: an interrupt request, a timer, or a spurious wake-up
    UNDEFINED = 2  #: the instruction at RIP is one that the engine does not execute
    CPUID = 3
    HLT = 4
    RDMSR = 5
    WRMSR = 6
    IO = 7  #: ``event.qualification`` as in VMX, ``event.length`` known
    CR_ACCESS = 8  #: a control register access, not decoded
    INVD = 9
    WBINVD = 10
    MONITOR = 11
    MWAIT = 12
    RDPMC = 13
    RDTSC = 14
    SHUTDOWN = 15  #: triple fault
    EXCEPTION = 16  #: an exception in the exception bitmap: vector and error code in the event
    TASK_SWITCH = 17
    RDTSCP = 18
    DEAD = 19  #: the entry failed or the context is not valid
    DR_ACCESS = 20  #: a debug register access with CPL 0, not decoded
    ICEBP = 21  #: INT1
    UNLOADABLE = 22  #: the context holds an extended state or XCR0 that the processor does not take
    IRET = 23  #: an IRET, not executed yet, while NMIs are blocked
    STEP = 24  #: the one instruction, or the event, that was asked for by :meth:`GuestContext.step` is done
    XSETBV = 25  #: of an engine that can intercept it
    PAUSE = 26  #: the guest waits for another processor, and the engine is short of cores
    SOFTWARE_INTERRUPT = 27  #: INT3, INT n or INTO, not executed yet, or what was there before


class Access(enum.IntFlag):
    """Kinds of access, with the bit values of an EPT-violation qualification."""

    READ = 1
    WRITE = 2
    FETCH = 4
    #: The access was made by the guest's own page walk (qualification bit 8 is clear).
    WALK = 8


class Event:
    """Where and why the engine stopped.  One object a context, overwritten by each run."""

    __slots__ = ("access", "error_code", "gpa", "length", "qualification", "stop", "tsc", "vector")

    def __init__(self) -> None:
        self.stop = Stop.DEAD
        #: Guest-physical address of a miss, page offset included where known.
        self.gpa = 0
        self.access = Access.READ
        #: VMX exit qualification (I/O), the linear address of a #PF, or an engine's diagnostic code.
        self.qualification = 0
        #: Instruction length in bytes, 0 where the engine does not know it.
        self.length = 0
        #: Exception vector, and its error code or None.
        self.vector = 0
        self.error_code: int | None = None
        #: Host TSC at the stop.
        self.tsc = 0


#: DR6 and DR7 (SDM volume 3, section 18.2): the bits that can be changed, and those that are always 1.
_DR_BITS: Final = {6: (0xE00F, 0xFFFF0FF0), 7: (0xFFFF23FF, 0x400)}


def debug_register(number: int, value: int) -> int:
    """What debug register ``number`` (0-3, 6, 7) holds once ``value`` was written to it."""
    if number < 4:
        return value
    changeable, ones = _DR_BITS[number]
    return value & changeable | ones


class TranslationCache(Protocol):
    """GPA to frame translations of one address space on one logical processor."""

    def map(self, gpa: int, hpa: int, size: int, access: Access, *, code: bool) -> None:
        """Cache a translation of ``size`` bytes (4 KiB or 2 MiB); ``code`` allows fetches."""

    def map_run(self, gpa: int, hpa: int, pages: int, access: Access, *, code: bool) -> None:
        """Cache translations of ``pages`` adjacent pages of 2 MiB that :meth:`uncached` has told of.

        They do not cross a multiple of 1 GiB.
        """

    def uncached(self, gpa: int) -> npt.NDArray[np.bool_]:
        """Of which of the 512 regions of 2 MiB in the 1 GiB at ``gpa`` nothing is cached."""

    def lookup(self, gpa: int) -> int | None:
        """The HPA that ``gpa`` is mapped to (byte address), or None."""

    def code_address(self, linear: int, cr3: int, words: memoryview) -> int | None:
        """The HPA of ``linear`` in 4-level paging, if all that the walk needs is cached, else None.

        ``words``: all frames as 8-byte integers.
        """

    def flush(self) -> None:
        """Forget everything."""

    def drop(self, hpa: int, size: int) -> None:
        """Forget whatever maps these frames."""

    def lend(self, gpa: int, hpa: int, pages: npt.NDArray[np.bool_], access: Access, *, code: bool) -> None:
        """Show ``pages`` of the 2 MiB of frames at ``hpa`` in a snapshot's file, for reading."""

    def lends(self, hpa: int) -> bool:
        """Whether it shows anything of the 2 MiB of frames at ``hpa`` in a snapshot's file."""

    def unlend(self, hpa: int, size: int) -> None:
        """Forget whatever shows these frames in a snapshot's file; those in the machine stay."""

    def serve(self, context: Any) -> None:
        """``context`` runs next with this cache."""

    def close(self) -> None:
        """It will not be used again."""


class GuestContext(Protocol):
    """A vCPU's registers in the processor, by VMCS encoding and by name for the hot ones."""

    event: Event

    @property
    def gpr(self) -> MutableSequence[int]:
        """RAX..R15 in x86 order; index 4 is RSP."""

    @property
    def gpr_bytes(self) -> memoryview:
        """The same registers as 128 bytes, little-endian."""

    def read(self, encoding: int) -> int:
        """A guest-state field."""

    def write(self, encoding: int, value: int) -> None:
        """Store a guest-state field."""

    rip: int
    rflags: int
    #: The guest interrupt status, VMCS field 0x0810 (SVI in 15:8, RVI in 7:0).
    interrupt_status: int

    @property
    def code(self) -> bytes | None:
        """The instruction at RIP where the engine itself knows it; None: it is in guest memory."""

    @property
    def cpl(self) -> int:
        """Current privilege level."""

    def read_msr(self, index: int) -> int | None:
        """An MSR that the engine keeps natively (STAR, KERNEL_GS_BASE, TSC_AUX, ...), else None."""

    def write_msr(self, index: int, value: int) -> bool:
        """Store such an MSR; False when the engine does not keep it."""

    def read_xstate(self) -> bytes:
        """The extended state, standard XSAVE format (bytes 0..)."""

    def write_xstate(self, image: bytes) -> None:
        """Load the extended state from a standard-format XSAVE image."""

    xcr0: int

    extra_msrs: dict[int, int]
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int

    @property
    def cs_base(self) -> int:
        """Base of CS."""

    @property
    def long_mode(self) -> bool:
        """Whether the guest executes 64-bit code (EFER.LMA and CS.L)."""

    @property
    def in_shadow(self) -> bool:
        """Whether the stop came in an STI or MOV SS shadow."""

    #: Blocking by NMI (bit 3 of the guest interruptibility).  While it is set, IRET stops.
    nmi_blocked: bool

    def skip(self, length: int) -> bool:
        """Move RIP ``length`` bytes on; False, and nothing done, in a shadow of STI or MOV SS or with TF."""

    def step(self) -> bool:
        """Have the next run end as soon as the guest has been delivered the event that is injected, or else
        has executed the IRET that it is at; an exception that the IRET raises stops, too.

        False: the engine cannot do that here.  Otherwise :meth:`stepped` has to be called after the run.
        """

    def stepped(self, event: Event) -> None:
        """The run that :meth:`step` was for has ended: its event becomes :attr:`Stop.STEP` if it was done."""

    @property
    def injecting(self) -> bool:
        """Whether an injected event has not been delivered yet."""

    def switch_paging(self, cr0: int, efer: int) -> None:
        """Load CR0 and EFER together."""

    def read_dr(self, number: int) -> int:
        """DR0-DR3, DR6 or DR7."""

    def write_dr(self, number: int, value: int) -> None:
        """Store DR0-DR3, DR6 or DR7; reserved bits keep their values."""

    def set_tsc_offset(self, offset: int) -> None:
        """What RDTSC adds to the machine's TSC."""

    def intercept_tsc(self, on: bool) -> None:
        """Whether RDTSC and RDTSCP stop."""

    def intercept_exceptions(self, bitmap: int) -> None:
        """Which exceptions stop with :attr:`Stop.EXCEPTION`; #BP with :attr:`Stop.SOFTWARE_INTERRUPT`."""

    def believe_interrupt(self) -> None:
        """Have the next run execute what :attr:`Stop.SOFTWARE_INTERRUPT` was for, not stop there."""

    def allow_msr(self, index: int, *, read: bool, write: bool) -> None:
        """Let RDMSR/WRMSR of ``index`` run in the engine (True) or stop (False)."""

    def inject(self, vector: int, kind: int, error_code: int | None) -> None:
        """Deliver an event at the next run.  ``kind`` is a VMX interruption type."""

    def withdraw(self) -> tuple[int, int, int | None] | None:
        """Take back an event that was to be injected at the next run."""

    def undelivered(self) -> tuple[int, int, int | None] | None:
        """The event (vector, kind, error code) whose delivery the stop interrupted, or None."""

    def offer_interrupt(self, vector: int | None) -> None:
        """Deliver external interrupt ``vector`` as soon as the guest can take it; None: none."""

    def interrupt_taken(self) -> bool:
        """Whether the offered interrupt was delivered since it was offered."""


class Engine(Protocol):
    """Executes guest instructions on the machine's logical processors."""

    name: str
    #: Guest-physical addresses that it can translate have this many bits.
    gpa_bits: int

    def context(self, lp: int) -> GuestContext:
        """A fresh context on logical processor ``lp``."""

    def attend(self, lp: int, context: Any) -> None:
        """Processor ``lp`` is going to use ``context``, and no other until it says so.

        An engine may put contexts aside that no processor attends to.
        """

    def release(self, context: Any) -> None:
        """The context will not be used again."""

    def space(self, lp: int) -> TranslationCache:
        """A fresh, empty translation cache on ``lp``."""

    def run(self, lp: int, context: Any, space: Any, deadline: int | None) -> Event:
        """Execute until something stops the guest.

        ``deadline`` is a host TSC value at which to stop with :attr:`Stop.INTERRUPT`, or None.
        """

    def rewrite(self, hpa: int, size: int) -> None:
        """Forget code translated from these frames: they were written behind the engine's back."""

    def kick(self, lp: int) -> None:
        """Make ``lp`` stop with :attr:`Stop.INTERRUPT`, now or at its next run.  Any thread."""

    def tsc(self) -> int:
        """The time-stamp counter of the machine."""

    @property
    def tsc_hz(self) -> float:
        """Its frequency in Hz."""

    @property
    def version(self) -> str:
        """What executes guests, and which version of it: what a vCPU may notice."""

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        """Run the software of several processors, by index, side by side until all of it has returned.

        ``failed`` is told of an exception and has to make the others return; then the first one is raised.
        """

    def acquire(self, lp: int, lock: threading.Lock) -> None:
        """Take a lock that the software of several processors shares; the others go on meanwhile."""

    def pause(self, lp: int, seconds: float) -> None:
        """Let the host's time pass, while other processors go on."""

    def wait(self, lp: int, woken: Wakeup, seconds: float | None) -> bool:
        """Let processor ``lp`` idle until ``woken`` is set (True), or ``seconds`` of machine time pass."""

    def close(self) -> None:
        """Stop and free everything.  Idempotent."""
