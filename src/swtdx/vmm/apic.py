"""The local APIC of a TD's vCPU, as far as the hypervisor emulates it.

The processor virtualises TPR, PPR, EOI, ISR, TMR, IRR and self-IPI in a page that the hypervisor cannot
see; the other x2APIC registers arrive as TDVMCALLs.  Interrupts go to the guest through the vCPU's
posted-interrupt descriptor.  Times are values of the machine's TSC, which the hypervisor sees, not of
the guest's.

Sources: Intel SDM volume 3, chapter 11 (x2APIC registers, timer, ICR); tdcall.md §5.3 (who gets which MSR).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from swtdx.devices.saved import In, Out
from swtdx.vmm.saved import get, pairs, put

X2APIC_BASE: Final = 0x800
#: Register numbers: MSR minus 0x800.
_ID, _VERSION, _LDR, _SVR = 0x02, 0x03, 0x0D, 0x0F
_ESR, _LVT_CMCI, _ICR = 0x28, 0x2F, 0x30
_LVT_TIMER, _LVT_THERMAL, _LVT_PERF, _LVT_LINT0, _LVT_LINT1, _LVT_ERROR = range(0x32, 0x38)
_TIMER_INITIAL, _TIMER_CURRENT, _TIMER_DIVIDE, _SELF_IPI = 0x38, 0x39, 0x3E, 0x3F

#: Version 0x14 with the LVT entries 0..5, as KVM's.
_VERSION_VALUE: Final = 0x0005_0014
#: The timer counts the core crystal clock that CPUID(0x15).ECX of a TD says.
TIMER_HZ: Final = 25_000_000
_MASKED: Final = 1 << 16
#: SVR: software has enabled the APIC.
_ENABLED: Final = 1 << 8
_LVT_BITS: Final = {
    _LVT_TIMER: 0x7_10FF,
    _LVT_THERMAL: 0x1_17FF,
    _LVT_PERF: 0x1_17FF,
    _LVT_LINT0: 0x1_F7FF,
    _LVT_LINT1: 0x1_F7FF,
    _LVT_ERROR: 0x1_10FF,
    _LVT_CMCI: 0x1_17FF,
}
_ONE_SHOT, _PERIODIC, _TSC_DEADLINE = 0, 1, 2
_FIXED, _LOWEST, _NMI = 0, 1, 4
_BROADCAST: Final = 0xFFFFFFFF
#: ESR bits: an illegal vector was sent, or written to the LVT.
_ESR_SEND_ILLEGAL: Final = 1 << 5
_LOWEST_VECTOR: Final = 16
#: A periodic timer faster than this many timer ticks is slowed down (KVM: 200 us at least).
_SHORTEST_PERIOD: Final = TIMER_HZ // 5000
#: A deadline timer is kept off for no longer than this, in seconds.
_LONGEST_ROUND_TRIP: Final = 0.1


#: What is saved of an APIC beside the LVT.
_SAVED: Final = (
    "_divide", "_error", "_error_latched", "_fired", "_guest_deadline", "_icr", "_initial", "_period",
    "_round_trip", "_svr", "deadline",
)  # fmt: skip


class Target(Protocol):
    """A vCPU that interrupts can be sent to."""

    index: int

    def post(self, vector: int) -> None:
        """Make ``vector`` pending."""

    def post_nmi(self) -> None:
        """Make an NMI pending."""


class Clock(Protocol):
    """The machine's time and its relation to the guest's."""

    @property
    def tsc_hz(self) -> float:
        """Frequency of the machine's TSC."""
        ...

    def now(self) -> int:
        """The machine's TSC."""
        ...

    def host_deadline(self, guest_tsc: int) -> int:
        """The machine's TSC when the guest's reaches ``guest_tsc``."""
        ...


class LocalApic:
    """One vCPU's.

    Args:
        vcpu: whose it is.
        others: finds the vCPUs of the TD, for interrupts between them.
        changed: called whenever ``deadline`` changes.

    ``deadline`` is the machine's TSC at which the timer fires, None while it does not run.
    """

    __slots__ = (
        "_changed", "_clock", "_divide", "_error", "_error_latched", "_fired", "_guest_deadline", "_icr",
        "_initial", "_lvt", "_others", "_period", "_round_trip", "_svr", "deadline", "vcpu",
    )  # fmt: skip

    def __init__(
        self,
        vcpu: Target,
        clock: Clock,
        others: Callable[[], list[Target]],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.vcpu = vcpu
        self._clock = clock
        self._others = others
        self._changed = changed
        self._lvt = dict.fromkeys(_LVT_BITS, _MASKED)
        self._svr = 0xFF
        self._icr = 0
        self._error = 0
        self._error_latched = 0
        self._initial = 0
        self._divide = 0
        #: Timer period in machine TSC ticks, when periodic.
        self._period = 0
        #: IA32_TSC_DEADLINE as it was written, while armed.
        self._guest_deadline = 0
        #: When the deadline timer fired, until it is set again; and how long that took last, in machine TSC.
        self._fired: int | None = None
        self._round_trip = 0
        self.deadline: int | None = None

    def save_state(self, out: Out) -> None:
        """Write the registers down.  Times are the machine's, whose counter goes on."""
        put(out, lvt=list(self._lvt.items()), **{name: getattr(self, name) for name in _SAVED})

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote."""
        fields = get(section)
        self._lvt = dict(pairs(fields["lvt"]))
        for name in _SAVED:
            setattr(self, name, fields[name])

    @property
    def apic_id(self) -> int:
        """x2APIC id: the vCPU's index (VP.INIT version 0)."""
        return self.vcpu.index

    @property
    def logical_id(self) -> int:
        """Logical x2APIC id: cluster in bits 31:16, a bit within it below."""
        return self.vcpu.index >> 4 << 16 | 1 << (self.vcpu.index & 15)

    # ------------------------------------------------------------------ registers
    def read(self, msr: int) -> int | None:
        """RDMSR of an x2APIC register; None where that is a #GP."""
        register = msr - X2APIC_BASE
        if register in self._lvt:
            return self._lvt[register]
        if register == _TIMER_CURRENT:
            return self._current_count()
        fixed = {
            _ID: self.vcpu.index,
            _VERSION: _VERSION_VALUE,
            _LDR: self.logical_id,
            _SVR: self._svr,
            _ESR: self._error_latched,
            _ICR: self._icr,
            _TIMER_INITIAL: self._initial,
            _TIMER_DIVIDE: self._divide,
        }
        return fixed.get(register)

    def write(self, msr: int, value: int) -> bool:
        """WRMSR of an x2APIC register; False where that is a #GP."""
        register = msr - X2APIC_BASE
        if register == _ICR:
            return self._write_icr(value)
        if value >> 32:
            return False
        if register == _TIMER_INITIAL:
            self._start(value)
        elif register == _LVT_TIMER:
            return self._write_lvt_timer(value)
        elif register in self._lvt:
            if value & ~(_LVT_BITS[register] | 1 << 12 | 1 << 14):
                return False
            self._lvt[register] = value & _LVT_BITS[register] | self._forced_mask()
        elif register == _TIMER_DIVIDE:
            if value & ~0xB:
                return False
            self._write_divide(value)
        elif register == _SVR:
            if value & ~0x11FF:
                return False
            self._svr = value
            for entry in self._lvt:
                self._lvt[entry] |= self._forced_mask()
        elif register == _ESR:
            if value:
                return False
            self._error_latched, self._error = self._error, 0
        elif register == _SELF_IPI:
            if value & 0xFF < _LOWEST_VECTOR:
                self._report(_ESR_SEND_ILLEGAL)
            else:
                self.vcpu.post(value & 0xFF)
        else:
            return False
        return True

    def _forced_mask(self) -> int:
        """The mask bit that every LVT entry has while software has the APIC disabled (SVR bit 8)."""
        return 0 if self._svr & _ENABLED else _MASKED

    def _report(self, error: int) -> None:
        """An error for the ESR; the guest hears of it if it wants to."""
        self._error |= error
        lvt = self._lvt[_LVT_ERROR]
        if not lvt & _MASKED:
            self.vcpu.post(lvt & 0xFF)

    # ------------------------------------------------------------------ timer
    def _mode(self) -> int:
        return self._lvt[_LVT_TIMER] >> 17 & 3

    def _write_lvt_timer(self, value: int) -> bool:
        if value & ~(_LVT_BITS[_LVT_TIMER] | 1 << 12) or value >> 17 & 3 == 3:
            return False
        before = self._mode()
        self._lvt[_LVT_TIMER] = value & _LVT_BITS[_LVT_TIMER] | self._forced_mask()
        after = self._mode()
        if before != after and _TSC_DEADLINE in (before, after):
            # A transition to or from deadline mode disarms the timer.
            self._initial = 0
            self._set(None, 0)
        elif before != after and after == _ONE_SHOT:
            self._period = 0
        elif before != after and self.deadline is not None:
            self._period = self._ticks(self._at_least(self._initial))
        return True

    def _write_divide(self, value: int) -> None:
        """The timer goes on from its current count, at the new speed."""
        before = self._divisor()
        self._divide = value
        after = self._divisor()
        if self.deadline is not None and self._mode() != _TSC_DEADLINE and before != after:
            now = self._clock.now()
            left = max(self.deadline - now, 0) * after // before
            period = self._ticks(self._at_least(self._initial)) if self._period else 0
            self._set(now + left, period)

    def _at_least(self, count: int) -> int:
        """A periodic timer's initial count, or what keeps it from doing nothing else but firing."""
        return max(count, _SHORTEST_PERIOD // self._divisor())

    def _divisor(self) -> int:
        code = self._divide & 3 | self._divide >> 1 & 4
        return 1 << ((code + 1) & 7)

    def _ticks(self, count: int) -> int:
        """Machine TSC ticks of ``count`` timer counts."""
        return int(count * self._divisor() * self._clock.tsc_hz / TIMER_HZ)

    def _start(self, count: int) -> None:
        if self._mode() == _TSC_DEADLINE:
            return
        self._initial = count
        if not count:
            self._set(None, 0)
            return
        periodic = self._mode() == _PERIODIC
        if periodic:
            count = self._at_least(count)
        ticks = self._ticks(count)
        self._set(self._clock.now() + ticks, ticks if periodic else 0)

    def _set(self, deadline: int | None, period: int) -> None:
        self._period = period
        if deadline != self.deadline:
            self.deadline = deadline
            self._changed()

    def _current_count(self) -> int:
        if self.deadline is None or self._mode() == _TSC_DEADLINE:
            return 0
        left = max(self.deadline - self._clock.now(), 0)
        return min(int(left * TIMER_HZ / self._clock.tsc_hz) // self._divisor(), self._initial)

    def read_deadline(self) -> int:
        """IA32_TSC_DEADLINE, in guest TSC; 0 when disarmed or not in that mode."""
        if self._mode() != _TSC_DEADLINE or self.deadline is None:
            return 0
        return self._guest_deadline

    def write_deadline(self, guest_tsc: int) -> None:
        """IA32_TSC_DEADLINE := guest TSC value; 0 disarms; ignored outside deadline mode."""
        if self._lvt[_LVT_TIMER] >> 17 & 3 == _TSC_DEADLINE:
            self._guest_deadline = guest_tsc
            self._set(self._not_too_soon(guest_tsc) if guest_tsc else None, 0)

    def _not_too_soon(self, guest_tsc: int) -> int:
        """When the timer that the guest has set is to fire, in machine TSC.

        On a busy host the guest's handler may take longer than the time to its next deadline, and the guest
        would do nothing else.  So it gets at least as long between two interrupts as the last one took: from
        when the timer fired until the guest set it again, waiting for a core included.
        """
        deadline = self._clock.host_deadline(guest_tsc)
        now = self._clock.now()
        if self._fired is not None:
            self._round_trip = min(now - self._fired, int(_LONGEST_ROUND_TRIP * self._clock.tsc_hz))
            self._fired = None
        return max(deadline, now + self._round_trip)

    def halted(self) -> None:
        """The vCPU waits: its timer need not be kept off."""
        if self.deadline is not None and self._mode() == _TSC_DEADLINE:
            self._set(self._clock.host_deadline(self._guest_deadline), 0)

    def fire(self, now: int) -> bool:
        """Send the timer's interrupt if its time has come at machine TSC ``now``; whether it had."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return False
        following = None
        self._fired = now
        if self._period:
            # Periods that passed meanwhile are one interrupt, as they are for hardware.
            missed = (now - deadline) // self._period
            following = deadline + (missed + 1) * self._period
        lvt = self._lvt[_LVT_TIMER]
        self._set(following, self._period)
        if not lvt & _MASKED:
            self.vcpu.post(lvt & 0xFF)
        return True

    # ------------------------------------------------------------------ interrupts between vCPUs
    def _write_icr(self, value: int) -> bool:
        """Interrupt command: vector 7:0, mode 10:8, logical 11, shorthand 19:18, destination 63:32."""
        if value & 0xFFF3_2000:
            return False
        self._icr = value & ~(1 << 12)
        mode = value >> 8 & 7
        vector = value & 0xFF
        if mode in (_FIXED, _LOWEST) and vector < _LOWEST_VECTOR:
            self._report(_ESR_SEND_ILLEGAL)
            return True
        for target in self._destinations(value):
            if mode == _NMI:
                target.post_nmi()
            elif mode in (_FIXED, _LOWEST):
                target.post(vector)
                if mode == _LOWEST:
                    break
            # INIT and SIPI do not exist for a TD's vCPUs.
        return True

    def _destinations(self, value: int) -> list[Target]:
        shorthand = value >> 18 & 3
        if shorthand == 1:
            return [self.vcpu]
        everyone = self._others()
        if shorthand == 2:
            return everyone
        if shorthand == 3:
            return [target for target in everyone if target is not self.vcpu]
        destination = value >> 32
        if destination == _BROADCAST:
            return everyone
        if value & 1 << 11:
            return [target for target in everyone if _in_cluster(target.index, destination)]
        return [target for target in everyone if target.index == destination]


def _in_cluster(index: int, destination: int) -> bool:
    return destination >> 16 == index >> 4 and bool(destination & 1 << (index & 15))
