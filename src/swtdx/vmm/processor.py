"""A logical processor as the hypervisor uses it: SEAMCALLs, retries, interrupts, counting.

Every SEAMCALL of the hypervisor goes through :meth:`Processor.call`, except TDH.VP.ENTER, whose loop
(:mod:`swtdx.vmm.run`) does the same by hand because it runs tens of thousands of times in a boot.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from swtdx.arch import regs
from swtdx.arch import status as st
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import R8, RAX, RCX, RDX
from swtdx.machine.host import GeneralProtection, HostProcessor, InvalidOpcode
from swtdx.vmm.errors import SeamcallError, leaf_name

#: Vectors of the hypervisor's own interrupts, as Linux places them (asm/irq_vectors.h).
NOTIFICATION_VECTOR: Final = 0xF2
TIMER_VECTOR: Final = 0xEC
#: "Look what there is to do": input, a stop request, a vCPU to be woken.
WAKE_VECTOR: Final = 0xFD

#: Told of each SEAMCALL: processor index, the 16 GPRs before it, and after it (x86 order).
Trace = Callable[[int, list[int], list[int]], None]

_BUSY: Final = frozenset(
    code >> 32
    for code in (st.TDX_OPERAND_BUSY, st.TDX_SYS_BUSY, st.TDX_RND_NO_ENTROPY, st.TDX_KEY_GENERATION_FAILED)
)
_INTERRUPTED: Final = frozenset({st.TDX_INTERRUPTED_RESUMABLE >> 32, st.TDX_INTERRUPTED_RESTARTABLE >> 32})
#: How often a busy call is repeated at once, and how often in all; then its status is the answer.
_EAGER: Final = 16
PATIENT: Final = 1000
#: Pause between patient retries, in seconds.
PAUSE: Final = 0.0005


class Processor:
    """One logical processor.

    ``gpr`` is the register file (RAX..R15, x86 order) that SEAMCALL reads and writes in place;
    ``counts`` says how often each leaf was called, by leaf number; ``trace`` sees every call if set.
    """

    __slots__ = (
        "counts",
        "gpr",
        "host",
        "index",
        "last",
        "mutex",
        "nmis",
        "package",
        "retries",
        "taken",
        "trace",
        "wanted",
    )

    def __init__(self, host: HostProcessor) -> None:
        self.host = host
        self.index = host.index
        self.package = host.package
        self.gpr = host.gpr
        self.counts = [0] * 256
        self.retries = 0
        #: The leaf (and version) of the latest call.
        self.last = 0
        self.trace: Trace | None = None
        #: Held by the thread that uses the processor; see :meth:`borrowed`.
        self.mutex = threading.RLock()
        #: How many threads wait for it.
        self.wanted = 0
        #: Vectors acknowledged and not yet looked at by the thread that runs vCPUs here, as a bit mask.
        self.taken = 0
        #: NMIs that were handled here.
        self.nmis = 0
        host.on_nmi(self._nmi)

    def _nmi(self) -> None:
        """The NMI handler: nothing here sends NMIs but to see that one came."""
        self.nmis += 1

    def handle_nmi(self) -> None:
        """Handle an NMI that was a TD exit, and so never came by the IDT (KVM: ``__vmx_handle_nmi``)."""
        self._nmi()
        self.host.iret()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Processor]:
        """Have the processor for oneself: its registers belong to one thread at a time.

        A thread that runs vCPUs here holds it; it is interrupted and lets go for as long as this takes.
        """
        if not self.mutex.acquire(blocking=False):
            self.wanted += 1
            try:
                self.host.interrupt(WAKE_VECTOR)
                self.mutex.acquire()
            finally:
                self.wanted -= 1
        try:
            yield self
        finally:
            self.mutex.release()

    def call(self, leaf: int) -> int:
        """SEAMCALL ``leaf`` (version in bits 23:16) with the operands in ``gpr``; the status.

        A call that is busy, interrupted or without entropy is repeated with the same operands, for at
        most about half a second; then that status is returned.  A SEAMCALL that faults or that nobody
        answers gives a software-defined status (``status.SW_*``), as in Linux.
        """
        gpr = self.gpr
        gpr[RAX] = leaf
        operands = gpr[:]
        tries = 0
        while True:
            status = self._once(leaf, operands)
            if status < st.ERROR:
                return status
            family = status >> 32
            if family in _BUSY:
                if tries >= _EAGER:
                    self.host.pause(PAUSE)
            elif family in _INTERRUPTED:
                self.take_interrupts()
            else:
                return status
            tries += 1
            if tries >= PATIENT:
                return status
            self.retries += 1
            gpr[:] = operands

    def call_once(self, leaf: int) -> int:
        """:meth:`call` without retries: for leaves whose next operands depend on the outcome."""
        self.gpr[RAX] = leaf
        return self._once(leaf, self.gpr[:])

    def aside(self, leaf: str, /, **registers: int) -> tuple[int, list[int]]:
        """:meth:`call_once` of the leaf called so; the status and the 16 registers after it.

        ``registers`` are the operands by register name.  ``gpr`` is afterwards what it was: what the next
        TDH.VP.ENTER hands to a guest stays as it is.

        Raises:
            KeyError: there is no such leaf.
            ValueError: there is no such register.
        """
        kept = self.gpr[:]
        regs.put(self.gpr, registers)
        status = self.call_once(HOST_BY_NAME[leaf].number)
        after = self.gpr[:]
        self.gpr[:] = kept
        return status, after

    def _once(self, leaf: int, operands: list[int]) -> int:
        self.counts[leaf & 0xFF] += 1
        self.last = leaf
        try:
            answered = self.host.seamcall()
        except GeneralProtection:
            return st.SW_GP
        except InvalidOpcode:
            return st.SW_UD
        if self.trace is not None:
            self.trace(self.index, operands, self.gpr[:])
        return self.gpr[RAX] if answered else st.SW_VMFAILINVALID

    def need(self, status: int, doing: str = "", *accepted: int) -> int:
        """``status`` of the last call if it is success, informational, or one of the codes ``accepted``.

        Raises:
            SeamcallError: it is anything else.
        """
        if status >= st.NON_RECOVERABLE and status & st.CODE_MASK not in accepted:
            gpr = self.gpr
            raise SeamcallError(self.last & 0xFFFF, status, (gpr[RCX], gpr[RDX], gpr[R8]), doing)
        return status

    def take_interrupts(self) -> int:
        """Acknowledge every pending external interrupt; their vectors as a bit mask.

        They are also added to ``taken``, for the run loop.
        """
        host = self.host
        taken = 0
        for vector in host.pending:
            host.acknowledge(vector)
            taken |= 1 << vector
        self.taken |= taken
        return taken

    def leaf_counts(self) -> dict[str, int]:
        """How often each leaf was called here, by name; leaves never called are left out."""
        return {leaf_name(leaf): n for leaf, n in enumerate(self.counts) if n}
