"""What exits and errors are called, and the SEAMCALL wrapper's retries."""

from __future__ import annotations

import pytest

from swtdx.arch import status as st
from swtdx.machine.host import GeneralProtection, InvalidOpcode
from swtdx.vmm import exits
from swtdx.vmm.errors import NoHkid, SeamcallError, VmmError, describe_status, leaf_name
from swtdx.vmm.exits import EptViolation, cause, end_of
from swtdx.vmm.hkid import HkidPool
from swtdx.vmm.processor import Processor
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.sysinfo import parse_metadata_list
from tests.vmm.fake_machine import FakeMachine


def processor() -> tuple[Processor, FakeMachine]:
    machine = FakeMachine()
    machine.processors[0].vmxon()
    return Processor(machine.host.processors[0]), machine


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (0, "exception or NMI"), (1, "external interrupt"), (2, "triple fault"), (3, "INIT"), (6, "SMI"),
        (9, "task switch"), (48, "EPT violation"), (74, "bus lock"), (77, "TDVMCALL"), (99, "VM exit 99"),
    ],
)  # fmt: skip
def test_causes(reason: int, words: str) -> None:
    """Numbers: Intel SDM volume 3, appendix C."""
    assert cause(reason) == words


@pytest.mark.parametrize(
    ("qualification", "extended", "gpa", "level", "text"),
    [
        (1, 0, 0x1000, None, "read at private GPA 0x1000"),
        (2, 0, 1 << 47 | 0x2000, None, "write at shared GPA 0x2000"),
        (4, 6, 0x3000, None, "fetch at private GPA 0x3000"),
        (0, 1, 0x200000, 0, "read at private GPA 0x200000"),
        (0, 1 | 1 << 32 | 2 << 35 | 0xF << 38, 0x200000, 1, "read at private GPA 0x200000"),
    ],
)
def test_violations(qualification: int, extended: int, gpa: int, level: int | None, text: str) -> None:
    """tdcall.md section 3: info of ACCEPT: the level asked for in bits 2:0 of the upper half."""
    violation = EptViolation(qualification, extended, gpa)
    assert violation.accept_level == level
    assert violation.describe(1 << 47) == text


def test_every_way_to_end_says_something() -> None:
    for code in (value for name, value in vars(st).items() if name.startswith("TDX_")):
        reason, words = end_of(code | 2)
        assert isinstance(reason, EndReason)
        assert words
    assert not RunResult(EndReason.STUCK).orderly
    assert str(RunResult(EndReason.TIMEOUT, "after 3 s")) == "the time was over: after 3 s"
    assert str(RunResult(EndReason.POWER_OFF)) == "the guest switched off"


def test_retries_are_statuses_of_the_recoverable_kind() -> None:
    """Bit 63 set and bit 62 clear: the call may be repeated (status-codes.md section 1)."""
    assert exits.RETRY
    for family in exits.RETRY:
        assert family >> 31 & 1
        assert not family >> 30 & 1


def test_errors_in_words() -> None:
    error = SeamcallError(
        6, st.with_operand(st.TDX_EPT_WALK_FAILED, st.OperandId.RCX), (5, 0, 7), "GPA 0x1000"
    )
    assert str(error) == "TDH.MEM.PAGE.AUG (GPA 0x1000): EPT_WALK_FAILED | RCX; RCX=0x5, R8=0x7"
    assert (error.leaf, error.outputs) == (6, (5, 0, 7))
    assert describe_status(st.with_operand(st.TDX_OPERAND_BUSY, st.OperandId.TDR)) == "OPERAND_BUSY | TDR"
    assert describe_status(st.TDX_INCORRECT_MSR_VALUE | 0x10A) == "INCORRECT_MSR_VALUE | 0x10a"
    assert leaf_name(16) == "TDH.MR.EXTEND"
    assert leaf_name(4000) == "SEAMCALL leaf 4000"


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (GeneralProtection("x"), st.SW_GP, "the BIOS has not enabled SEAM"),
        (InvalidOpcode("x"), st.SW_UD, "not in VMX root operation"),
        (None, st.SW_VMFAILINVALID, "no TDX module is loaded"),
    ],
)
def test_a_seamcall_that_nobody_answers(fault: Exception | None, status: int, words: str) -> None:
    cpu, machine = processor()

    def seamcall() -> bool:
        if fault is not None:
            raise fault
        return False

    machine.processors[0].seamcall = seamcall  # type: ignore[method-assign]
    assert cpu.call(33) == status
    with pytest.raises(SeamcallError, match=words):
        cpu.need(status)


@pytest.mark.parametrize(
    ("code", "repeated"),
    [
        (st.with_operand(st.TDX_OPERAND_BUSY, 128), True),
        (st.TDX_SYS_BUSY, True),
        (st.TDX_RND_NO_ENTROPY, True),
        (st.TDX_KEY_GENERATION_FAILED, True),
        (st.TDX_INTERRUPTED_RESUMABLE, True),
        (st.TDX_INTERRUPTED_RESTARTABLE, True),
        (st.with_operand(st.TDX_OPERAND_INVALID, 1), False),
        (st.TDX_VCPU_ASSOCIATED, False),
        (st.TDX_FLUSHVP_NOT_DONE, False),
    ],
)
def test_what_is_repeated(code: int, repeated: bool) -> None:
    """With the operands of the first time, although the module changes registers on error."""
    cpu, machine = processor()
    seen: list[list[int]] = []
    answers = [code, code, 0]

    def seamcall() -> bool:
        seen.append(cpu.gpr[:])
        cpu.gpr[:] = [answers.pop(0), *[0xBAD] * 15]
        return True

    machine.processors[0].seamcall = seamcall  # type: ignore[method-assign]
    machine.processors[0].interrupt(0x55)
    cpu.gpr[1:4] = [11, 22, 33]
    assert cpu.call(2) == (0 if repeated else code)
    assert len(seen) == (3 if repeated else 1)
    assert all(registers == seen[0] for registers in seen)
    if code >> 32 in (st.TDX_INTERRUPTED_RESUMABLE >> 32, st.TDX_INTERRUPTED_RESTARTABLE >> 32):
        assert not machine.processors[0].pending
        assert cpu.taken == 1 << 0x55


def test_the_trace_sees_both_sides() -> None:
    cpu, machine = processor()
    machine.module.sys = "READY"
    calls: list[tuple[int, list[int], list[int]]] = []
    cpu.trace = lambda index, before, after: calls.append((index, before, after))
    cpu.gpr[1:] = range(101, 116)
    status = cpu.call(33)
    ((index, before, after),) = calls
    assert (index, before) == (0, [33, *range(101, 116)])
    assert after[0] == status == st.TDX_SYS_INIT_NOT_PENDING
    assert cpu.leaf_counts() == {"TDH.SYS.INIT": 1}


def test_hkids() -> None:
    pool = HkidPool(32, 4)
    assert pool.global_hkid == 32
    taken = [pool.take() for _ in range(3)]
    assert sorted(taken) == [33, 34, 35]
    with pytest.raises(NoHkid, match="all 3 HKIDs for TDs are in use"):
        pool.take()
    pool.give_back(34)
    assert (pool.take(), pool.free) == (34, 0)
    pool.give_back(33)
    with pytest.raises(VmmError, match="given back and was free"):
        pool.give_back(33)
    with pytest.raises(VmmError, match="reserve more KeyID bits"):
        HkidPool(32, 1)


def test_metadata_lists() -> None:
    """structures.md section 13.1: header, then sequences of an id (with counts) and its elements."""
    import struct

    first, second = 0x9900000300000000, 0x1000000200000010
    body = struct.pack("<QQ", first, 7) + struct.pack("<Q3Q", second | 2 << 38, 1, 2, 3)
    body += struct.pack("<Q4Q", 0x20 | 1 << 34 | 1 << 38, 4, 5, 6, 7)
    data = struct.pack("<HHI", 8 + len(body), 3, 0) + body
    assert parse_metadata_list(data.ljust(4096, b"\0")) == {
        first: 7, second: 1, second + 1: 2, second + 2: 3, 0x20: 4, 0x21: 5, 0x22: 6, 0x23: 7,
    }  # fmt: skip
    with pytest.raises(ValueError, match="ends inside sequence"):
        parse_metadata_list(struct.pack("<HHI", 8 + len(body) - 8, 3, 0) + body)
