"""A machine for the hypervisor's unit tests: memory, processors, and a strict little TDX module.

The module is written from shared/reference (seamcall.md, life-cycle.md), not from the hypervisor: it keeps
its own account of pages, Secure EPT entries and TLB epochs, and answers what the reference says to a
call out of order.  Guests are Python generators that yield operations (see :class:`FakeVcpu`).
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

from swtdx.arch import status as st
from swtdx.machine.engine.threads import run_threads
from swtdx.machine.host import Host
from tests.vmm.fake_module import FakeModule

PAGE = 4096


class FakeMemory:
    """Sparse memory by HPA; pages that the module owns must not be touched by the hypervisor."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.module: FakeModule | None = None
        self.cleared: list[tuple[int, int]] = []

    def _page(self, pa: int) -> bytearray:
        assert pa < 1 << 46, f"the hypervisor used a KeyID at {pa:#x}"
        if self.module is not None:
            assert not self.module.owns(pa), f"the hypervisor touched the TD's page {pa:#x}"
        return self.pages.setdefault(pa & -PAGE, bytearray(PAGE))

    def read(self, pa: int, count: int) -> bytes:
        data = b""
        while count:
            part = min(count, PAGE - pa % PAGE)
            data += bytes(self._page(pa)[pa % PAGE : pa % PAGE + part])
            pa += part
            count -= part
        return data

    def write(self, pa: int, data: bytes) -> None:
        view = memoryview(bytes(data))
        while view:
            part = min(len(view), PAGE - pa % PAGE)
            self._page(pa)[pa % PAGE : pa % PAGE + part] = view[:part]
            pa += part
            view = view[part:]

    def read_u64(self, pa: int) -> int:
        return int.from_bytes(self.read(pa, 8), "little")

    def write_u64(self, pa: int, value: int) -> None:
        self.write(pa, struct.pack("<Q", value))

    def clear(self, pa: int, size: int) -> None:
        assert pa % PAGE == 0
        assert size % PAGE == 0
        if self.module is not None:
            for page in range(pa, pa + size, PAGE):
                assert not self.module.owns(page), f"the hypervisor cleared the TD's page {page:#x}"
        self.cleared.append((pa, size))
        for page in [page for page in self.pages if pa <= page < pa + size]:
            del self.pages[page]


class FakeProcessor:
    """A logical processor; its time is the machine's."""

    def __init__(self, machine: FakeMachine, index: int, package: int) -> None:
        self.machine = machine
        self.index = index
        self.package = package
        self.gpr = [0] * 16
        self.xmm = [0] * 16
        self.waiting: set[int] = set()
        self.deadline: int | None = None
        self.timer_vector = 0
        self.vmx = False
        self.halts = 0
        self._event = threading.Event()

    def seamcall(self) -> bool:
        assert self.vmx, "SEAMCALL outside VMX operation"
        return self.machine.module.seamcall(self)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Two caches: 32 KiB for data of one id, 4 MiB of four."""
        if leaf == 4 and subleaf < 2:
            return ((0x121, 0x1C0003F, 63, 0), (0x143 | 3 << 14, 0x3C0003F, 4095, 0))[subleaf]
        if leaf == 0x80000006:
            return 0, 0, 4096 << 16 | 7 << 12 | 64, 0
        return 0, 0, 0, 0

    def vmxon(self) -> None:
        self.vmx = True

    @property
    def pending(self) -> list[int]:
        return sorted(self.waiting)

    def acknowledge(self, vector: int) -> None:
        self.waiting.discard(vector)

    def interrupt(self, vector: int) -> None:
        self.waiting.add(vector)
        self._event.set()

    def on_nmi(self, handler: Callable[[], None] | None) -> None:
        """No NMI comes here."""

    def arm_timer(self, deadline: int | None, vector: int) -> None:
        self.deadline, self.timer_vector = deadline, vector

    def poll(self) -> None:
        if self.deadline is not None and self.machine.now >= self.deadline:
            self.deadline = None
            self.waiting.add(self.timer_vector)

    def halt(self, timeout: float | None = None) -> None:
        """Time jumps to the timer; without one a thread has to interrupt."""
        self.halts += 1
        self.poll()
        while not self.waiting:
            if self.deadline is not None:
                self.machine.now = max(self.machine.now, self.deadline)
                self.poll()
            else:
                self._event.clear()
                if not self.waiting:
                    assert self._event.wait(10), "halted for ever"

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def acquire(self, lock: threading.Lock) -> None:
        lock.acquire()


class FakeMachine:
    """See the module's docstring.  Time is a counter that tests and guests move."""

    def __init__(
        self,
        *,
        usable: list[tuple[int, int]] | None = None,
        cmrs: list[tuple[int, int]] | None = None,
        packages: int = 1,
        per_package: int = 1,
    ) -> None:
        self.usable = usable or [(0, 0xA0000), (0x100000, (1 << 30) - 0x100000), (1 << 32, 1 << 30)]
        self.memory = FakeMemory()
        self.packages = packages
        self.now = 1_000_000
        self.tsc_hz = 2.5e9
        self.keyid_shift = 46
        self.shared_keyids = 31
        self.private_keyids = 32
        self.wbinvds = 0
        self.processors = [
            FakeProcessor(self, index, index // per_package) for index in range(packages * per_package)
        ]
        self.module = FakeModule(self, cmrs or [(0x100000, (1 << 30) - 0x100000), (1 << 32, 1 << 30)])
        self.memory.module = self.module

    def memory_map(self) -> list[tuple[int, int]]:
        return list(self.usable)

    def tsc(self) -> int:
        return self.now

    def together(
        self, programs: Mapping[int, Callable[[], None]], failed: Callable[[BaseException], None]
    ) -> None:
        run_threads(programs, failed)

    def wbinvd(self, package: int) -> None:
        self.wbinvds += 1

    @property
    def host(self) -> Host:
        """The machine as the hypervisor's type."""
        return cast(Host, self)


class FakeVcpu:
    """A vCPU: a generator that yields operations and is sent their outcomes.

    ========================  ==============================================================
    ("vmcall", {reg: value})  TDG.VP.VMCALL passing every register; sent the registers after
    ("accept", gpa, level)    TDG.MEM.PAGE.ACCEPT; sent the SEPT state found
    ("private", gpa)          an access; sent nothing
    ("shared", gpa)           an access to a shared GPA (without the bit): sent the HPA, or "#VE"
    ("wait", ticks)           time passes with the guest running
    ("interrupts",)           sent the vectors that the virtual APIC holds, which are taken
    ("triple fault",)         the end
    ========================  ==============================================================
    """

    def __init__(self, tdvpr: int, td: Any) -> None:
        self.tdvpr = tdvpr
        self.td = td
        self.pages = 1
        self.index = -1
        self.state = "UNINIT"
        self.lp: FakeProcessor | None = None
        self.fields: dict[int, int] = {}
        self.virr: set[int] = set()
        self.nmis = 0
        self.program: Generator[tuple[Any, ...], Any, None] | None = None
        self.operation: tuple[Any, ...] | None = None
        self.in_vmcall = False
        self.entered_epoch = 0


def status_of(code: int, operand: int = 0) -> int:
    """A status with an operand id."""
    return st.with_operand(code, operand)
