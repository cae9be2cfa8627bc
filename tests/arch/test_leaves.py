"""Leaf tables against seamcall.md, tdcall.md and Linux, and against themselves."""

from __future__ import annotations

import pytest

from swtdx.arch import regs
from swtdx.arch.features import MODULE_1_5_01
from swtdx.arch.leaf import LOADER, RESERVED, SAME, Leaf
from swtdx.arch.leaves import BY_NAME, GUEST_LEAVES, HOST_LEAVES, LOADER_LEAVES, find
from swtdx.arch.operands import OPERAND_NAMES
from tests.arch.vectors import words

#: arch/x86/virt/vmx/tdx/tdx.h and arch/x86/include/asm/shared/tdx.h of Linux (numbers only).
LINUX = {
    "TDH.MNG.ADDCX": 1, "TDH.MEM.PAGE.ADD": 2, "TDH.MEM.SEPT.ADD": 3, "TDH.VP.ADDCX": 4,
    "TDH.MEM.PAGE.AUG": 6, "TDH.MEM.RANGE.BLOCK": 7, "TDH.MNG.KEY.CONFIG": 8, "TDH.MNG.CREATE": 9,
    "TDH.VP.CREATE": 10, "TDH.MNG.RD": 11, "TDH.MR.EXTEND": 16, "TDH.MR.FINALIZE": 17, "TDH.VP.FLUSH": 18,
    "TDH.MNG.VPFLUSHDONE": 19, "TDH.MNG.KEY.FREEID": 20, "TDH.MNG.INIT": 21, "TDH.VP.INIT": 22,
    "TDH.PHYMEM.PAGE.RDMD": 24, "TDH.VP.RD": 26, "TDH.PHYMEM.PAGE.RECLAIM": 28, "TDH.MEM.PAGE.REMOVE": 29,
    "TDH.SYS.KEY.CONFIG": 31, "TDH.SYS.INIT": 33, "TDH.SYS.RD": 34, "TDH.SYS.LP.INIT": 35,
    "TDH.SYS.TDMR.INIT": 36, "TDH.MEM.TRACK": 38, "TDH.PHYMEM.CACHE.WB": 40, "TDH.PHYMEM.PAGE.WBINVD": 41,
    "TDH.VP.WR": 43, "TDH.SYS.CONFIG": 45, "TDH.SYS.DISABLE": 69, "TDG.VP.INFO": 1,
    "TDG.VP.VEINFO.GET": 3, "TDG.MR.REPORT": 4,
    "TDG.MEM.PAGE.ACCEPT": 6, "TDG.VM.WR": 8,
}  # fmt: skip
#: seamcall.md §1 and tdcall.md §1: leaves that accept a version 1.
VERSIONED = {3, 11, 23, 26, 30}
#: Later modules' (Linux: ``tdh_vp_init``).
NEWLY_VERSIONED = {22}
GUEST_VERSIONED = {7}
#: seamcall.md §1: leaves that the dispatcher lets through before the module is ready.
EARLY = {31, 32, 33, 34, 35, 37, 44, 45, 53}
#: Linux calls it whatever became of the initialisation.
NEWLY_EARLY = {69}


def test_every_leaf_of_the_reference_is_there_and_no_other() -> None:
    expected = {("host", 42): "TDH.MEM.SEPT.WR"}  # a number without a function
    expected[("host", 69)] = "TDH.SYS.DISABLE"  # newer than the reference; Linux has it
    expected |= {(side, int(number)): name for side, number, name in words("leaves.txt")}
    ours = {("host", number): leaf.name for number, leaf in HOST_LEAVES.items()}
    ours |= {("guest", number): leaf.name for number, leaf in GUEST_LEAVES.items()}
    assert ours == expected
    assert HOST_LEAVES[42].support == RESERVED


@pytest.mark.parametrize(("name", "number"), LINUX.items())
def test_linux_agrees(name: str, number: int) -> None:
    assert BY_NAME[name].number == number


def test_loader_leaves() -> None:
    names = ["SEAMLDR.INFO", "SEAMLDR.INSTALL", "SEAMLDR.SHUTDOWN", "SEAMLDR.SEAMINFO"]
    assert {1 << 63 | number: name for number, name in enumerate(names)} == {
        number: leaf.name for number, leaf in LOADER_LEAVES.items()
    }


def test_versions_and_module_states() -> None:
    versioned = {number for number, leaf in HOST_LEAVES.items() if MODULE_1_5_01.form(leaf).max_version}
    assert versioned == VERSIONED
    newly = {number for number, leaf in HOST_LEAVES.items() if leaf.max_version} - versioned
    assert newly == NEWLY_VERSIONED
    assert {number for number, leaf in GUEST_LEAVES.items() if leaf.max_version} == GUEST_VERSIONED
    for number, leaf in HOST_LEAVES.items():
        pending = leaf.sys_states & 0b111 == 0b111
        assert pending == (number in EARLY | NEWLY_EARLY), leaf.name
        # Only TDH.SYS.LP.SHUTDOWN is let through when the module is shut down.
        assert bool(leaf.sys_states >> 4 & 1) == (number == 44), leaf.name


def _mask(row: str) -> int:
    return sum(1 << place for place, mark in enumerate(row) if mark == "Y")


def test_op_states() -> None:
    expected = {int(number): (name, _mask(row)) for number, name, row in words("op_states.txt")}
    for number, (name, states) in expected.items():
        leaf = HOST_LEAVES[number]
        assert (leaf.name, leaf.op_states) == (f"TDH.{name}", states)
    for number, leaf in HOST_LEAVES.items():
        if number not in expected:
            assert leaf.op_states is None, leaf.name


@pytest.mark.parametrize(
    ("file", "leaves"), [("sept_host.txt", HOST_LEAVES), ("sept_guest.txt", GUEST_LEAVES)]
)
def test_sept_states(file: str, leaves: dict[int, Leaf]) -> None:
    expected = {int(number): (name, _mask(row)) for number, name, row in words(file)}
    for number, (name, states) in expected.items():
        leaf = leaves[number]
        assert (leaf.name.partition(".")[2], leaf.sept_states) == (name, states)
    assert {number for number, leaf in leaves.items() if leaf.sept_states is not None} == set(expected)


def test_tables_are_consistent() -> None:
    for leaf in BY_NAME.values():
        assert find(leaf.side, leaf.number) is leaf
        operands = [(each.register, each.since) for each in leaf.inputs]
        operands += [(each.register, each.since) for each in leaf.outputs]
        for register, since in operands:
            assert regs.number(register) not in (regs.RAX, regs.RSP), leaf.name
            assert since <= leaf.max_version, f"{leaf.name}: {register}"
        inputs = [each.register for each in leaf.inputs]
        outputs = [each.register for each in leaf.outputs]
        assert len(set(inputs)) == len(inputs), leaf.name
        assert len(set(outputs)) == len(outputs), leaf.name
        for output in leaf.outputs:
            if output.on_error == SAME and leaf.side != LOADER:
                assert output.meaning, leaf.name


def test_bit_ranges_of_operands_do_not_overlap() -> None:
    for leaf in BY_NAME.values():
        for operand in leaf.inputs:
            taken = 0
            for bits in operand.bits:
                assert 0 <= bits.low <= bits.high < 64
                assert not taken & bits.mask, f"{leaf.name} {operand.register}: {bits.name}"
                taken |= bits.mask


def test_registers_named_by_statuses_are_inputs() -> None:
    """OPERAND_INVALID | R8 makes sense only for a leaf that has R8."""
    for leaf in BY_NAME.values():
        inputs = {each.register for each in leaf.inputs} | {"RAX"}
        for outcome in leaf.outcomes:
            if outcome.details is None or "METADATA" in outcome.name or outcome.details > 15:
                continue
            if outcome.name.endswith(f"| {OPERAND_NAMES[outcome.details]}"):
                assert OPERAND_NAMES[outcome.details] in inputs, f"{leaf.name}: {outcome.name}"


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'middle'"):
        find("middle", 0)
    assert find("host", 46) is None
