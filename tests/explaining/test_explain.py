"""``swtdx explain``: known answers out of the public documents, and every name and number of the tables."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from swtdx.arch import ghci, leaves, metadata, msr_policy, status
from swtdx.arch.exits import ExitReason
from swtdx.arch.operands import OPERAND_NAMES
from swtdx.cli.explain import explain
from swtdx.explaining.find import Unknown, find, near, number


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(explain, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("words", "title", "shown"),
    [
        # status-codes.md
        ("0xC000010000000001", "TDX_OPERAND_INVALID | RCX", "TDH.MNG.CREATE"),
        ("c000010000000001", "TDX_OPERAND_INVALID | RCX", "invalid operand"),
        ("0xC000_0A12_0002_0103", "TDX_PAMT_OVERLAP | TDMR 3, PAMT 2M, other TDMR 2", "TDH.SYS.CONFIG"),
        ("0xC00009200000003B", "TDX_INCONSISTENT_MSR | MSR 0x3b", "TDH.VP.INIT"),
        ("OPERAND_BUSY | SEPT_TREE", "TDX_OPERAND_BUSY | SEPT_TREE", "may succeed later"),
        ("TDX_TD_FATAL", "TDX_TD_FATAL", "only be torn down"),
        ("0x4000000100000002", "TDX_NON_RECOVERABLE_VCPU | exit reason 2", "TRIPLE_FAULT"),
        ("0x8000FF00FFFF0000", "SW_VMFAILINVALID", "VMfailInvalid"),
        ("0x8000000000020001", "EBADHASH", "SEAMLDR.INSTALL"),
        # seamcall.md, tdcall.md
        ("TDH.MNG.INIT", "TDH.MNG.INIT", "TD_PARAMS"),
        ("tdh_mng_init", "TDH.MNG.INIT", "UNINITIALIZED"),
        ("TDH.MNG.WR", "TDH.MNG.WR", "no register but RAX changes"),
        ("TDH.MNG.RD", "TDH.MNG.RD", "for a version that it has not: as on error"),
        ("leaf 21", "TDH.MNG.INIT", "TSC_FREQUENCY"),
        ("TDG.VP.VMCALL", "TDG.VP.VMCALL", "31:16 xmm_select"),
        ("SEAMLDR.INSTALL", "SEAMLDR.INSTALL", "0x8000000000000001"),
        # structures.md §13
        ("0x9110000300000010", "NOTIFY_ENABLES", "bits 0x1"),
        ("0x9000000300000083", "CMR_BASE", "TDH.SYS.RD"),
        ("CMR_BASE[3]", "CMR_BASE", "0x9000000300000083"),
        ("TD.XFAM", "XFAM", "0x1110000300000001"),
        ("field 0x94100003000003fe", "CPUID_VALUES", "leaf 0x1"),
        # ghci.md
        ("MapGPA", "TDVMCALL MapGPA", "ALIGN_ERROR"),
        ("tdvmcall 0x30", "TDVMCALL #VE.RequestMMIO", "shared GPA"),
        ("0x10003", "TDVMCALL ReportFatalError", "R14"),
        # Intel SDM, appendix C; tdcall.md §5
        ("exit 48", "exit reason EPT_VIOLATION", "TD exit"),
        ("EPT_VIOLATION", "exit reason EPT_VIOLATION", "Exit qualification"),
        ("exit 12", "exit reason HLT", "#VE"),
        ("exit 76", "exit reason SEAMCALL", "#UD"),
        ("exit 8", "exit reason NMI_WINDOW", "the module emulates it"),
        ("exit 14", "exit reason INVLPG", "NON_RECOVERABLE_TD"),
        ("operand 146", "operand SEPT_TREE", "TDH.MEM.RANGE.UNBLOCK"),
        ("msr 0x10", "MSR 0x10, IA32_TIME_STAMP_COUNTER", "WRMSR  #VE"),
        ("IA32_EFER", "MSR 0xc0000080, IA32_EFER", "emulated"),
        ("msr 0x1b", "MSR 0x1b", "not in the module's table"),
        ("msr 0x2000", "MSR 0x2000", "outside the MSR bitmaps"),
        ("cpuid 6", "CPUID 0x6", "always #VE"),
        ("cpuid 0x80000008", "CPUID 0x80000008", "57 linear-address bits"),
        ("cpuid 0x40000000", "CPUID 0x40000000", "#VE"),
        ("cpuid 4.9", "CPUID 0x4.0x9", "#VE"),
        ("cpuid 0x30", "CPUID 0x23.0x0", "beyond the last leaf"),
    ],
)
def test_known_answers(words: str, title: str, shown: str) -> None:
    status_, text = run(*words.split(" "))
    assert status_ == 0, text
    assert title in text.splitlines()[0]
    assert shown in text


def test_a_number_with_several_meanings_lists_them_all() -> None:
    _, text = run("48")
    for also in ("swtdx explain exit 48", "swtdx explain tdvmcall 0x30"):
        assert also in text
    _, text = run("--json", "48")
    assert {each["kind"] for each in json.loads(text)} >= {"leaf", "exit", "tdvmcall"}
    _, text = run("--all", "48")
    assert "It also means" not in text


def test_every_name_and_number_of_the_tables_is_explained() -> None:
    for leaf in leaves.BY_NAME.values():
        assert find(leaf.name)[0].title == leaf.name
        assert leaf.name in {each.title for each in find(hex(leaf.number), "leaf")}
    for value, name in status.NAMES.items():
        assert find(name)[0].title.startswith(name)
        assert find(hex(value), "status")[0].title.startswith(name)
    for table in metadata.TABLES.values():
        for row in table:
            assert row.name in {each.title for each in find(hex(row.id), "field")}
            assert row.name in {each.title for each in find(row.name, "field")}
    for call in ghci.CALLS.values():
        assert find(call.name, "tdvmcall") == find(hex(call.number), "tdvmcall")
    for reason in ExitReason:
        assert find(reason.name, "exit") == find(str(int(reason)), "exit")
    for operand, name in OPERAND_NAMES.items():
        assert find(name, "operand") == find(str(operand), "operand")
    for rule in msr_policy.RULES:
        assert find(hex(rule.last), "msr")


def test_a_status_names_every_leaf_that_declares_it() -> None:
    given = {row[0] for each in find("TDX_HKID_NOT_FREE") for table in each.tables for row in table.rows}
    assert given == {"TDH.MNG.CREATE"}
    # An operand that is not the one asked for does not belong there.
    for each in find("OPERAND_INVALID | XFAM"):
        assert {row[0] for table in each.tables for row in table.rows} == {"TDH.MNG.INIT"}


def test_json_is_a_list_of_meanings() -> None:
    _, text = run("--json", "TDH.MNG.CREATE")
    (meaning,) = json.loads(text)
    assert meaning["kind"] == "leaf"
    assert meaning["facts"]["Number"] == "9"
    first, second = meaning["tables"]["Inputs"]
    assert (first["Register"], second["Register"]) == ("RCX", "RDX")
    assert {
        "Status": "TDX_HKID_NOT_FREE",
        "Value": "0xc000082000000000",
        "What must hold": "the HKID is free",
    } in (meaning["tables"]["Statuses in the order of the checks"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x10", 16),
        ("16", 16),
        ("10h", 16),
        ("0x1_0", 16),
        ("C000010000000001", 0xC000010000000001),
        ("0x1FFFFFFFFFFFFFFFF", None),
        ("-1", None),
        ("TDR", None),
        ("", None),
    ],
)
def test_numbers(text: str, expected: int | None) -> None:
    assert number(text) == expected


@pytest.mark.parametrize("word", ["TDH.MNG.INOT", "TDH_MNG_INT"])
def test_unknown_names_come_with_near_ones(word: str) -> None:
    status_, text = run(word)
    assert status_ == 2
    assert "did you mean" in text
    assert "TDH.MNG.INIT" in text


def test_unknown_without_anything_near() -> None:
    status_, text = run("qqqqqq")
    assert status_ == 2
    assert "did you mean" not in text
    assert near("IA32_TSC")[0].startswith("IA32_TSC")
    for kind in ("leaf", "status", "field", "tdvmcall", "exit", "operand", "msr", "cpuid"):
        with pytest.raises(Unknown):
            find("qqqqqq", kind)


def test_piped_lines_have_no_blanks_at_their_ends_and_no_colours() -> None:
    _, text = run("TDH.VP.ENTER")
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
