"""Status codes and operand ids against status-codes.md, Linux, and the layout of a code."""

from __future__ import annotations

import pytest

from swtdx.arch import status, status_notes
from swtdx.arch.leaves import BY_NAME
from tests.arch.vectors import words

#: arch/x86/kvm/vmx/tdx_errno.h and arch/x86/include/asm/tdx.h of Linux (numbers only).
LINUX = {
    "TDX_NON_RECOVERABLE_VCPU": 0x4000000100000000,
    "TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE": 0x6000000500000000,
    "TDX_INTERRUPTED_RESUMABLE": 0x8000000300000000,
    "TDX_OPERAND_INVALID": 0xC000010000000000,
    "TDX_OPERAND_BUSY": 0x8000020000000000,
    "TDX_PREVIOUS_TLB_EPOCH_BUSY": 0x8000020100000000,
    "TDX_RND_NO_ENTROPY": 0x8000020300000000,
    "TDX_PAGE_METADATA_INCORRECT": 0xC000030000000000,
    "TDX_VCPU_NOT_ASSOCIATED": 0x8000070200000000,
    "TDX_KEY_GENERATION_FAILED": 0x8000080000000000,
    "TDX_KEY_STATE_INCORRECT": 0xC000081100000000,
    "TDX_KEY_CONFIGURED": 0x0000081500000000,
    "TDX_NO_HKID_READY_TO_WBCACHE": 0x0000082100000000,
    "TDX_FLUSHVP_NOT_DONE": 0x8000082400000000,
    "TDX_EPT_WALK_FAILED": 0xC0000B0000000000,
    "TDX_EPT_ENTRY_STATE_INCORRECT": 0xC0000B0D00000000,
    "TDX_METADATA_FIELD_NOT_READABLE": 0xC0000C0200000000,
}


#: Codes of later modules (``tdx_error_codes_defs.h`` of their public sources).
NEWER = {"TDX_X2APIC_ID_NOT_UNIQUE": 0xC000_0621_0000_0000}


def test_every_code_of_the_reference_is_there_and_no_other() -> None:
    expected = {row[1]: int(row[0], 16) for row in words("statuses.txt")}
    assert expected | NEWER == status.VALUES


def test_flags_of_every_code() -> None:
    for value, name, error, non_recoverable, fatal in words("statuses.txt"):
        entry = status_notes.STATUSES[int(value, 16)]
        flags = entry.name, entry.error, entry.non_recoverable, entry.fatal
        assert flags == (name, error == "1", non_recoverable == "1", fatal == "1")


def test_operand_ids() -> None:
    assert {int(number): name for number, name in words("operands.txt")} == status.OPERAND_NAMES


def test_loader_codes() -> None:
    expected = {int(value, 0): name for value, name in words("pseamldr.txt")}
    assert expected == status.PSEAMLDR_NAMES


@pytest.mark.parametrize(("name", "value"), LINUX.items())
def test_linux_agrees(name: str, value: int) -> None:
    assert status.VALUES[name] == value


def test_linux_software_codes() -> None:
    # TDX_SW_ERROR, TDX_SEAMCALL_VMFAILINVALID, _GP and _UD of asm/tdx.h
    base = 1 << 63 | 0xFF << 40
    assert base == status.SW_ERROR
    assert base | 0xFFFF0000 == status.SW_VMFAILINVALID
    assert (base | 13, base | 6) == (status.SW_GP, status.SW_UD)


def test_codes_are_apart_and_well_formed() -> None:
    codes = list(status.VALUES.values())
    assert len(set(codes)) == len(codes)
    for code in codes:
        assert not code & status.DETAILS_MASK
        assert not code >> 48 & 0xFFF, f"{code:#x} has reserved bits"
        assert code >> 40 & 0xFF in status_notes.CLASSES
        # No two codes differ only in their flags.
        assert [other for other in codes if (other ^ code) & 0xFFFF_0000_0000 == 0] == [code]


def test_decoding_takes_apart_what_was_put_together() -> None:
    for code in status.VALUES.values():
        for details in (0, 1, 146, 0x10A, 0x00030201):
            decoded = status_notes.decode(code | details)
            assert decoded is not None
            assert (decoded.status.value, decoded.details) == (code, details)
            assert status.name_of(code | details) == decoded.status.name
    assert status_notes.decode(0xC000_7700_0000_0000) is None


def test_leaves_declare_codes_that_exist() -> None:
    known = set(status.VALUES.values()) | set(status.PSEAMLDR_NAMES)
    for leaf in BY_NAME.values():
        for outcome in leaf.outcomes:
            assert outcome.status in known, f"{leaf.name}: {outcome}"
            assert outcome.check
