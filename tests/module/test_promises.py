"""Single promises of the module to a TD and about its hypervisor, each with a guest that looks for itself.

What is expected comes from the published layouts and rules, as numbers, not from the code that keeps them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.lab.bench import Bench
from swtdx.lab.victim import RAM, SECOND, Victim
from swtdx.machine.engine.scripted import Pause, Read, Tdcall, Write, read_bytes, write_bytes
from swtdx.machine.memory import Requestor
from swtdx.vmm.td import Td
from swtdx.vmm.td_params import TdConfig

PAGE = 4096
INVALID, XFAM = 0xC0000100_00000000, 65
EPT_VIOLATION, TDCALL = 48, 77
RTMR_EXTEND, REPORT, VERIFY, ACCEPT = 2, 4, 22, 6


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


class Actor(Victim):
    """A TD that plays ``part``, a script."""

    def __init__(self, bench: Bench, part: Any) -> None:
        self.part = part
        super().__init__(bench.hypervisor, bench.machine.engine, b"actor", "actor")

    def _program(self, cpu: Any) -> Any:
        yield from self.part(cpu)
        while True:
            yield Tdcall(rax=0, rcx=0xFC00, r10=0, r11=0)


# ---------------------------------------------------------------------- reports
def test_a_report_says_all_that_it_is_about(bench: Bench) -> None:
    """REPORTMACSTRUCT and TDINFO byte by byte (base ABI: TDREPORT_STRUCT)."""
    data = bytes(range(1, 65))
    extended = [bytes([0xA0 + index]) * 48 for index in range(4)]
    seen: dict[str, Any] = {}

    def part(_cpu: Any) -> Any:
        for gpa in (RAM, SECOND):
            yield Tdcall(rax=ACCEPT, rcx=gpa)
        for index in range(4):
            yield from write_bytes(RAM + 256, extended[index])
            assert (yield Tdcall(rax=RTMR_EXTEND, rcx=RAM + 256, rdx=index)).rax == 0
        yield from write_bytes(RAM, data)
        seen["status"] = (yield Tdcall(rax=REPORT, rcx=SECOND, rdx=RAM, r8=0)).rax
        seen["report"] = yield from read_bytes(SECOND, 1024)
        seen["verified"] = (yield Tdcall(rax=VERIFY, rcx=SECOND)).rax

    Actor(bench, part).enter()
    assert (seen["status"], seen["verified"]) == (0, 0)
    report = seen["report"]
    assert report[128:192] == data, "REPORTDATA, to its last byte"
    for index in range(4):
        register = report[512 + 208 + 48 * index : 512 + 256 + 48 * index]
        assert register == hashlib.sha384(bytes(48) + extended[index]).digest(), f"RTMR{index}"
    assert report[80:128] == hashlib.sha384(report[512:1024]).digest(), "TEE_INFO_HASH"
    assert report[32:80] == hashlib.sha384(report[256 : 256 + 239]).digest(), "TEE_TCB_INFO_HASH"
    key = bench.machine.seam.fuses.report_key
    assert report[224:256] == hmac.digest(key, report[:224], "sha256"), "the MAC covers all that is before it"


# ---------------------------------------------------------------------- TDG.VP.VMCALL
@pytest.mark.parametrize("left_out", [2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
def test_only_selected_registers_pass(bench: Bench, left_out: int) -> None:
    """Each register on its own: what the guest does not select goes neither out nor in.

    RBP is not for passing in a TD with NO_RBP_MOD, and RSP in none.
    """
    mask = 0xFFCC & ~(1 << left_out)
    names = ["rax", "rcx", "rdx", "rbx", "", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
    guest = {number: 0x1000 + number for number in range(2, 16) if number not in (4, 5)}
    seen: dict[int, int] = {}

    def part(cpu: Any) -> Any:
        for number, value in guest.items():
            cpu.gpr[number] = value
        yield Tdcall(rax=0, rcx=mask)
        seen.update({number: cpu.gpr[number] for number in guest})

    actor, cpu = Actor(bench, part), bench.cpu
    cpu.gpr[:] = [0xDEAD] * 16
    assert actor.enter() == TDCALL
    out = [cpu.gpr[number] for number in guest]
    assert out == [0 if number == left_out else value for number, value in guest.items()], names[left_out]
    host = {number: 0x2000 + number for number in guest}
    for number, value in host.items():
        cpu.gpr[number] = value
    actor.enter()
    assert seen == host | {left_out: guest[left_out]}, names[left_out]


def test_nothing_is_left_in_xmm(bench: Bench) -> None:
    """An exit that the guest did not ask for, and one that selects no XMM register, clear all of them."""

    def part(cpu: Any) -> Any:
        for number in range(16):
            cpu.set_xmm(number, 0x5EC2E7 << number)
        yield Tdcall(rax=0, rcx=0xFC00, r10=0)
        yield Pause(100_000)
        yield Pause(100_000)

    actor, cpu = Actor(bench, part), bench.cpu
    for expected in (TDCALL, 1):
        cpu.host.xmm[:] = range(1, 17)
        if expected == 1:
            cpu.gpr[10] = 0
            cpu.host.interrupt(0x33)
        # Not Actor.enter: it deals with interrupts.
        cpu.gpr[1] = actor.tdvpr
        assert cpu.call_once(0) & 0xFFFFFFFF == expected
        assert list(cpu.host.xmm) == [0] * 16
    cpu.host.acknowledge(0x33)


# ---------------------------------------------------------------------- TLBs
def test_translations_of_the_vcpu_before_are_gone(bench: Bench) -> None:
    """A vCPU that is new on a processor must not reach a removed page by what another one left there."""
    first, other = bench.hypervisor.processors
    seen: list[int] = []

    def keeper(_cpu: Any) -> Any:
        yield Tdcall(rax=ACCEPT, rcx=RAM)
        yield Write(RAM, 0x1234)
        while True:
            yield Tdcall(rax=0, rcx=0xFC00, r10=0)

    def late(_cpu: Any) -> Any:
        seen.append((yield Read(RAM)))

    engine: Any = bench.machine.engine
    engine.add_program(keeper)
    td = Td.build(
        bench.hypervisor, TdConfig(vcpus=2), [], ram=[(RAM, RAM + (2 << 20))], name="two",
        processors=[first, other],
    )  # fmt: skip
    one, two = td.vcpus

    def enter(cpu: Any, vcpu: Any) -> int:
        while True:
            cpu.gpr[1] = vcpu.tdvpr
            rax = int(cpu.call_once(0))
            if rax != EPT_VIOLATION or RAM in td.private.small:
                return rax
            td.private.resolve(cpu, cpu.gpr[8] & -PAGE, 0)

    assert enter(first, one) == TDCALL
    engine.add_program(late)
    with first.borrowed():
        # The first vCPU stays where it is; the second has never been there, and is new to any processor.
        assert bench.call("TDH.VP.FLUSH", other, rcx=two.tdvpr) == 0
        assert bench.call("TDH.MEM.RANGE.BLOCK", first, rcx=RAM, rdx=td.root) == 0
        assert bench.call("TDH.MEM.TRACK", first, rcx=td.root) == 0
        assert bench.call("TDH.MEM.PAGE.REMOVE", first, rcx=RAM, rdx=td.root) == 0
    assert enter(first, two) == EPT_VIOLATION
    assert seen == []


# ---------------------------------------------------------------------- TD_PARAMS
@pytest.mark.parametrize("bit", [3, 4, 10, 13, 14, 16, 19, 20, 31, 32, 62, 63])
def test_xfam_bits_that_do_not_exist(bench: Bench, bit: int) -> None:
    """XFAM's bits 3, 4, 10, 13, 14, 16 and 19 up are reserved (base ABI: XFAM)."""
    td = Td(bench.hypervisor, TdConfig(), "unfinished", bench.cpu)
    real = TdConfig.params
    status: list[int] = []

    def params(self: TdConfig, *arguments: Any) -> bytes:
        content = bytearray(real(self, *arguments))
        assert content[8] & 3 == 3, "XFAM is at byte 8"
        content[8 + bit // 8] |= 1 << bit % 8
        return bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TdConfig, "params", params)
        try:
            td.create()
        except Exception as refused:
            status.append(getattr(refused, "status", 0))
    assert status == [INVALID | XFAM]


# ---------------------------------------------------------------------- the SEAM range
def seam_range(bench: Bench) -> tuple[int, int]:
    """[start, end) by the MSRs that software reads: base, and mask in units of 32 MiB (bits 51:25)."""
    lp = bench.machine.processors[0]
    base, mask = lp.rdmsr(0x1400) & ~0x1FFFFFF, lp.rdmsr(0x1401) & ~0x1FFFFFF
    size = mask & -mask
    return base, base + size


@pytest.mark.parametrize("place", ["first", "second", "last", "one before the last"])
def test_no_page_of_the_seam_range_is_open(bench: Bench, place: str) -> None:
    start, end = seam_range(bench)
    page = {
        "first": start,
        "second": start + PAGE,
        "last": end - PAGE,
        "one before the last": end - 2 * PAGE,
    }[place]
    memory, host = bench.machine.memory, bench.platform.host.memory
    before = memory.read(page, PAGE, Requestor.SEAM)
    for size in (8, 64, PAGE):
        for at in (page, page + PAGE - size):
            assert host.read(at, size) == b"\xff" * size
            assert memory.read(at, size, Requestor.DEVICE) == b"\xff" * size
    host.write(page + PAGE - 8, b"attacker")
    memory.write(page, b"attacker", Requestor.DEVICE)
    assert memory.read(page, PAGE, Requestor.SEAM) == before
    sizes = {"TDH.SYS.RDALL": "rdx", "TDH.SYS.INFO": "rcx", "TDH.SYS.CONFIG": "rcx", "TDH.MNG.INIT": "rdx"}
    refusals = 0
    for leaf, register in sizes.items():
        operands = {"rcx": bench.tdr, "rdx": 1024, "r8": 0, "r9": 32} | {register: page}
        status = bench.call(leaf, **operands)
        refusals += status >> 32 == INVALID >> 32
        assert status >> 63, f"{leaf} takes a buffer in the SEAM range: {status:#x}"
    assert refusals >= 2, "of leaves that get as far as to look at it"
    assert memory.read(page, PAGE, Requestor.SEAM) == before


@pytest.mark.parametrize("last", [False, True])
def test_no_page_is_copied_out_of_the_seam_range(bench: Bench, last: bool) -> None:
    """TDH.MEM.PAGE.ADD into a TD that is being built, with its source there, and elsewhere to compare."""
    start, end = seam_range(bench)
    td = Td(bench.hypervisor, TdConfig(), "unfinished", bench.cpu)
    td.create()
    td.private.add(bench.cpu, RAM, bench.page(), measured=False)
    for source, expected in ((end - PAGE if last else start, INVALID | 9), (bench.page(), 0)):
        status = bench.call("TDH.MEM.PAGE.ADD", rcx=SECOND, rdx=td.root, r8=bench.page(), r9=source)
        assert status == expected
