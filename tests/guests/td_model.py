"""A trust domain's first instructions on Unicorn, an emulator that knows nothing of TDX.

Private memory exists where a page was added or accepted and nowhere else; shared memory where the
hypervisor put something.  TDCALL is an invalid instruction to Unicorn, and is answered here from the
published ABI.  Unicorn has 40 physical address bits, so unless a test says otherwise the vCPU is told
that GPAW is 40: the shim derives the shared bit from it like from any other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from unicorn import UC_ARCH_X86, UC_ERR_INSN_INVALID, UC_MODE_64, Uc, UcError
from unicorn import x86_const as x

from swtdx.guests.plan import PrivatePage

GPAW = 40
SHARED_BIT = 1 << (GPAW - 1)
TDCALL = bytes.fromhex("660f01cc")
PAGE = 4096
LARGE = 1 << 21

OPERAND_INVALID_RCX = 0xC000010000000001
OPERAND_BUSY = 0x8000020000000000
PAGE_ALREADY_ACCEPTED = 0x00000B0A00000000
PAGE_SIZE_MISMATCH = 0xC0000B0B00000000

_MESSAGE_REGISTERS = (
    x.UC_X86_REG_R14, x.UC_X86_REG_R15, x.UC_X86_REG_RBX, x.UC_X86_REG_RDI,
    x.UC_X86_REG_RSI, x.UC_X86_REG_R8, x.UC_X86_REG_R9, x.UC_X86_REG_RDX,
)  # fmt: skip


class FatalError(Exception):
    """The guest called ReportFatalError with this message."""


class PoweredOff(Exception):
    """The guest wrote to the port that switches it off."""


@dataclass
class TdModel:
    """One vCPU, its memory, and the parts of the TDX Module that the first code of a TD needs."""

    pages: Iterable[PrivatePage]
    gpaw: int = GPAW
    #: 2 MiB regions that the hypervisor maps by 4 KiB pages.
    small: set[int] = field(default_factory=set)
    #: Pages that the hypervisor sneaked in as already accepted.
    sneaked: set[int] = field(default_factory=set)
    #: How often each further TDCALL is answered "busy" first.
    busy: int = 0
    rtmrs: list[bytes] = field(default_factory=lambda: [bytes(48)] * 4)
    accepted: list[tuple[int, int]] = field(default_factory=list)
    serial: bytearray = field(default_factory=bytearray)
    ports: list[tuple[int, int]] = field(default_factory=list)
    power_off_port: int | None = None
    report: bytes = bytes(1024)
    leaves: Counter[int] = field(default_factory=Counter)
    before_tdcall: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        self.uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self.uc.ctl_set_cpu_model(x.UC_CPU_X86_SKYLAKE_SERVER)
        for page in self.pages:
            self.uc.mem_map(page.gpa, PAGE)
            self.uc.mem_write(page.gpa, page.data)
        self._busy_left = self.busy

    # -- memory ------------------------------------------------------------------------------------
    def share(self, gpa: int, data: bytes) -> None:
        """Put ``data`` into shared memory at ``gpa``, which is given without any shared bit."""
        self.uc.mem_map(SHARED_BIT | gpa, -(-len(data) // PAGE) * PAGE)
        self.uc.mem_write(SHARED_BIT | gpa, data)

    def read(self, gpa: int, size: int) -> bytes:
        """Private memory."""
        return bytes(self.uc.mem_read(gpa, size))

    def register(self, number: int) -> int:
        """The value of a Unicorn register."""
        value: int = self.uc.reg_read(number)
        return value

    # -- execution ---------------------------------------------------------------------------------
    def reset(self, vcpu: int = 0) -> None:
        """The state after TDH.VP.INIT: 32-bit protected mode, flat, paging off."""
        set_ = self.uc.reg_write
        # Unicorn starts in something like 64-bit mode without paging; turning paging on and off again
        # leaves that for good.
        set_(x.UC_X86_REG_CR4, 0x20)
        set_(x.UC_X86_REG_CR0, 0x80000021)
        set_(x.UC_X86_REG_CR0, 0x21)
        set_(x.UC_X86_REG_CR4, 0x40)
        set_(x.UC_X86_REG_CR3, 0)
        set_(x.UC_X86_REG_MSR, (0xC0000080, 0x901))
        set_(x.UC_X86_REG_EFLAGS, 2)
        # What a TD finds in its registers, and junk where it may find anything.
        for number in (x.UC_X86_REG_RAX, x.UC_X86_REG_RDI, x.UC_X86_REG_RBP, x.UC_X86_REG_RSP):
            set_(number, 0)
        set_(x.UC_X86_REG_RBX, self.gpaw)
        set_(x.UC_X86_REG_RCX, 0xDEADBEEF000)
        set_(x.UC_X86_REG_R8, 0xDEADBEEF000)
        set_(x.UC_X86_REG_RDX, 0x000806F8)
        set_(x.UC_X86_REG_RSI, vcpu)
        self._at = 0xFFFFFFF0

    def run(self, until: int = 0, count: int = 0) -> None:
        """Run to address ``until``, or for ``count`` instructions.

        Raises:
            FatalError, PoweredOff: the guest said so.
            UcError: the guest did something impossible, such as touching a page that is not there.
        """
        while True:
            try:
                self.uc.emu_start(self._at, until, count=count)
            except UcError as error:
                self._at = self.register(x.UC_X86_REG_RIP)
                if error.errno != UC_ERR_INSN_INVALID or self.read(self._at, 4) != TDCALL:
                    raise
                if self._tdcall():
                    self._at += 4
                continue
            self._at = self.register(x.UC_X86_REG_RIP)
            return

    def start(self, until: int = 0) -> None:
        """Reset vCPU 0 and run."""
        self.reset()
        self.run(until)

    # -- the TDX Module ----------------------------------------------------------------------------
    def _tdcall(self) -> bool:
        """Serve one TDCALL; False if the instruction is to be executed again."""
        leaf = self.register(x.UC_X86_REG_RAX)
        assert self.register(x.UC_X86_REG_CS) == 0x10, "TDCALL outside 64-bit mode is #GP"
        if self.before_tdcall:
            self.before_tdcall(leaf)
        self.leaves[leaf] += 1
        if leaf == 0:
            self._vmcall()
            return True
        if leaf in (2, 6) and self._busy_left:
            self._busy_left -= 1
            self._return(OPERAND_BUSY | 1)
            return True
        self._busy_left = self.busy
        match leaf:
            case 1:
                self._vp_info()
            case 2:
                self._rtmr_extend()
            case 4:
                self._mr_report()
            case 6:
                self._accept()
            case _:
                raise AssertionError(f"unexpected TDCALL leaf {leaf}")
        return True

    def _return(self, status: int) -> None:
        self.uc.reg_write(x.UC_X86_REG_RAX, status)

    def _accept(self) -> None:
        operand = self.register(x.UC_X86_REG_RCX)
        gpa, level = operand & ~0xFFF, operand & 7
        size = {0: PAGE, 1: LARGE}.get(level)
        if size is None or operand & 0xFF8 or gpa % size or gpa >> (self.gpaw - 1):
            self._return(OPERAND_INVALID_RCX)
            return
        if level == 1 and gpa in self.small:
            self._return(PAGE_SIZE_MISMATCH)
            return
        if any(gpa <= page < gpa + size for page in self.sneaked):
            self._return(PAGE_ALREADY_ACCEPTED)
            return
        assert not any(gpa < end and start < gpa + size for start, end in self.accepted), hex(gpa)
        self.uc.mem_map(gpa, size)
        self.accepted.append((gpa, gpa + size))
        self._return(0)

    def _rtmr_extend(self) -> None:
        gpa, index = self.register(x.UC_X86_REG_RCX), self.register(x.UC_X86_REG_RDX)
        assert gpa % 64 == 0
        assert index < 4
        self.rtmrs[index] = hashlib.sha384(self.rtmrs[index] + self.read(gpa, 48)).digest()
        self._return(0)

    def _vp_info(self) -> None:
        for register, value in (
            (x.UC_X86_REG_RCX, self.gpaw),
            (x.UC_X86_REG_RDX, 0x1000_0000),
            (x.UC_X86_REG_R8, 1 | 4 << 32),
            (x.UC_X86_REG_R9, 0),
            (x.UC_X86_REG_R10, 1),
            (x.UC_X86_REG_R11, 0),
        ):
            self.uc.reg_write(register, value)
        self._return(0)

    def _mr_report(self) -> None:
        gpa, data = self.register(x.UC_X86_REG_RCX), self.register(x.UC_X86_REG_RDX)
        assert gpa % 1024 == 0
        assert data % 64 == 0
        assert self.register(x.UC_X86_REG_R8) == 0
        report = bytearray(self.report)
        report[128:192] = self.read(data, 64)
        self.uc.mem_write(gpa, bytes(report))
        self._return(0)

    def _vmcall(self) -> None:
        mask = self.register(x.UC_X86_REG_RCX)
        assert mask >> 32 == 0
        assert mask & 0x13 == 0, "RAX, RCX and RSP cannot be passed"
        assert mask & 0xFC00 == 0xFC00
        assert self.register(x.UC_X86_REG_R10) == 0
        arguments = [self.register(x.UC_X86_REG_R11 + i) for i in range(5)]
        match arguments[0]:
            case 0x10003:
                assert mask == 0xFFCC
                assert arguments[1] & 0xFFFF == 0
                text = b"".join(self.register(r).to_bytes(8, "little") for r in _MESSAGE_REGISTERS)
                raise FatalError(text.rstrip(b"\0").decode("ascii"))
            case 30:
                size, write, port, value = arguments[1:]
                assert (size, write) == (1, 1)
                if port == self.power_off_port:
                    raise PoweredOff(f"{value:#x}")
                assert port == 0x3F8
                self.serial.append(value)
            case _:
                raise AssertionError(f"unexpected TDG.VP.VMCALL {arguments[0]:#x}")
        self.uc.reg_write(x.UC_X86_REG_R10, 0)
        self._return(0)
