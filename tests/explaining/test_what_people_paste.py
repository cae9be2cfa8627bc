"""What people paste into ``swtdx explain``: statuses as Linux has them, log lines, codes of DCAP.

The right answers are Intel's and Linux's headers (named at each), and public reports.
"""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from swtdx.arch import metadata
from swtdx.arch.metadata import Context
from swtdx.arch.published_modules import MODULES
from swtdx.cli.explain import explain
from swtdx.explaining.dcap import FAMILIES
from swtdx.explaining.find import Unknown, find


def run(*words: str) -> list[str]:
    result = CliRunner().invoke(explain, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.parametrize(
    ("value", "name", "intel"),
    [
        # arch/x86/include/asm/shared/tdx_errno.h against tdx_error_codes_defs.h
        ("0x4000000200000000", "TDX_NON_RECOVERABLE_TD", "0x6000000200000000"),
        ("0x4000000200000030", "TDX_NON_RECOVERABLE_TD", "0x6000000200000030"),
        ("0x6000000700000000", "TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE", "0xe000000700000000"),
        ("0x4000000500000000", "TDX_NON_RECOVERABLE_TD_FATAL", "0x6000000500000000"),
    ],
)
def test_what_linux_calls_a_status(value: str, name: str, intel: str) -> None:
    title, summary, *_ = run(value)
    assert title.endswith(f"what Linux calls {name}")
    assert f"Intel's module returns {intel}" in summary
    assert all(each.kind == "status" for each in find(value))
    # By name, both values come.
    text = "\n".join(run("status", name))
    assert f"{int(value, 16) >> 32 << 32:#018x}" in text


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        ("0xc0000b0a00000000", "nearest: TDX_PAGE_ALREADY_ACCEPTED 0x00000b0a00000000"),
        ("0xc000ff0000000000", "nearest: SW_ERROR 0x8000ff0000000000"),
        ("0x8000010000000000", "nearest: TDX_OPERAND_INVALID 0xc000010000000000"),
        ("0xc0000b7700000000", "nearest: TDX_L2_SEPT_PAGE_NOT_PROVIDED 0xc0000b1200000000"),
        ("0xc000550000000000", "no such class"),
        ("0xc123010000000000", "bits 59:48"),
        ("0x8000ff0000000001", "nearest: SW_ERROR 0x8000ff0000000000"),
        ("0x8000000000000007", "nearest: P-SEAMLDR's EBADHANDOFF 0x8000000000000004"),
        ("0x8000000200000000", "nearest: TDX_NON_RECOVERABLE_TD 0x6000000200000000"),
    ],
)
def test_error_bits_make_a_status_or_nothing(value: str, nearest: str) -> None:
    title, summary, *_ = run(value)
    assert title == f"{value}: no status of this module"
    assert nearest in summary
    assert [each.kind for each in find(value)] == ["status"]


def test_no_field_is_found_by_dropping_bits() -> None:
    for table in metadata.TABLES.values():
        for row in table:
            for flag in (1 << 62, 1 << 55, 1 << 63):
                for each in find_or_none(hex(row.id ^ flag)):
                    if each.kind == "field":
                        identifier = int(dict(each.facts)["Identifier"], 16)
                        assert not (identifier ^ row.id ^ flag) >> 55, (row.name, hex(flag))
    # Linux's TDCS_NOTIFY_ENABLES was 0x9100000000000010: the context is left out, and that is said.
    (found,) = [each for each in find("0x9100000000000010", "field") if each.title == "NOTIFY_ENABLES"]
    assert "context" in dict(found.facts)["Given as"]
    assert find("0x9110000300000010")[0].title == "NOTIFY_ENABLES"
    assert metadata.by_name(Context.SYS, "NUM_PKGS").id == 0x200000000
    assert find("0x200000000")[0].title == "NUM_PKGS"


@given(value=st.integers(0, (1 << 64) - 1))
def test_a_number_like_a_status_is_a_field_only_in_all_bits_that_it_has(value: int) -> None:
    """Bit 63 or 62 with bits 59:48 clear: a status by its form; a field then has every bit that is set."""
    for number in (value | 1 << 63, value | 1 << 62):
        number &= ~(0xFFF << 48)
        for each in find_or_none(hex(number)):
            if each.kind == "field":
                identifier = int(dict(each.facts)["Identifier"], 16)
                assert not number & ~identifier & ~0xFFFFFF, hex(number)


def find_or_none(text: str) -> list:  # type: ignore[type-arg]
    try:
        return find(text)
    except Unknown:
        return []


@pytest.mark.parametrize(
    ("text", "title"),
    [
        # sgx_ql_lib_common.h, sgx_default_qcnl_wrapper.h, sgx_qve_header.h, sgx_pce.h, td_ql_wrapper.h,
        # qgs_msg_lib.h, tdx_attest.h
        ("0xe044", "SGX_QL_UNKNOWN_MESSAGE_RESPONSE"),
        ("0xe011", "SGX_QL_NO_PLATFORM_CERT_DATA"),
        ("0xe032", "SGX_QL_TCB_REVOKED"),
        ("57412", "SGX_QL_UNKNOWN_MESSAGE_RESPONSE"),
        ("0xb011", "SGX_QCNL_ERROR_STATUS_UNEXPECTED"),
        ("0xb033", "SGX_QCNL_ROOT_CA_UNTRUSTED"),
        ("0xb006", "SGX_QCNL_NETWORK_COULDNT_CONNECT"),
        ("0xa006", "SGX_QL_QV_RESULT_UNSPECIFIED"),
        ("0xf007", "SGX_PCE_INVALID_PRIVILEGE"),
        ("0x11001", "TEE_ATT_ERROR_UNEXPECTED"),
        ("0x11043", "TEE_ATT_ERROR_BUSY"),
        ("0x12001", "QGS_MSG_ERROR_UNEXPECTED"),
        ("TEE_ERROR_INVALID_PRIVILEGE", "SGX_QL_ERROR_INVALID_PRIVILEGE"),
        ("dcap 8", "TDX_ATTEST_ERROR_QUOTE_FAILURE"),
        ("tee_att_get_quote return 0x11001", "TEE_ATT_ERROR_UNEXPECTED"),
        ("0xe0fe", "0xe0fe: nothing in the TDX ABI"),
        # MSRs of the host that the module looks at: Intel SDM, volume 4
        ("0x1401", "MSR 0x1401, IA32_SEAMRR_PHYS_MASK"),
        ("0xc0000b0b", "upper half of TDX_PAGE_SIZE_MISMATCH"),
        ("c0000b0b", "upper half of TDX_PAGE_SIZE_MISMATCH"),
        ("0x80000200", "upper half of TDX_OPERAND_BUSY"),
        ("0x40000002", "upper half of 0x4000000200000000: what Linux calls TDX_NON_RECOVERABLE_TD"),
    ],
)
def test_other_numbers(text: str, title: str) -> None:
    assert run(*text.split(" ", 1) if text.startswith("dcap") else [text])[0] == title


def test_dcap_numbers_and_names_are_unique() -> None:
    for family in FAMILIES:
        assert (
            len({row[0] for row in family.rows}) == len({row[1] for row in family.rows}) == len(family.rows)
        )
        for low, name, meaning in family.rows:
            assert meaning, name
            for prefix in family.prefixes:
                assert prefix + name in {
                    each.title if prefix == family.prefixes[0] else dict(each.facts)["Also called"]
                    for each in find(prefix + name)
                }
            assert find(hex(family.base | low), "dcap")


@pytest.mark.parametrize(
    ("line", "status", "also"),
    [
        # canonical/tdx issues 25, 331, 153, 83; intel/confidential-computing.tdx.tdx-module issue 24
        (
            "[    7.592823] tdx: SEAMCALL failed: CPU 94: leaf 33, error 0xc000092100000122.",
            "TDX_INCORRECT_MSR_VALUE | MSR 0x122 IA32_TSX_CTRL",
            "TDH.SYS.INIT",
        ),
        (
            "[   10.798780] virt/tdx: SEAMCALL (0x0000000000000022) failed: 0xc000050500000000",
            "TDX_SYS_NOT_READY",
            "TDH.SYS.RD",
        ),
        (
            "SEAMCALL (0x000000000000001c) failed: 0xc000030000000001 RCX 0x0000000000000000 RDX 0x0",
            "TDX_PAGE_METADATA_INCORRECT | RCX",
            "TDH.PHYMEM.PAGE.RECLAIM",
        ),
        (
            "TDH.MNG.INIT failed with status: 0xc000010000000045",
            "TDX_OPERAND_INVALID | CPUID_CONFIG",
            "TDH.MNG.INIT",
        ),
        (
            "kvm: tdh_mem_page_aug failed: 0x8000020000000092",
            "TDX_OPERAND_BUSY | SEPT_TREE",
            "TDH.MEM.PAGE.AUG",
        ),
        ("TDCALL 5 failed: 0xc0000c0000000000", "TDX_METADATA_FIELD_ID_INCORRECT", "TDG.VP.CPUIDVE.SET"),
    ],
)
def test_a_line_of_a_log(line: str, status: str, also: str) -> None:
    lines = run(line)
    assert lines[0] == status
    assert any(row.startswith(f"  {also}:") for row in lines)
    assert {each["kind"] for each in json.loads("\n".join(run("--json", line)))} == {"status", "leaf"}


def test_a_log_on_standard_input() -> None:
    log = "[ 1.0] virt/tdx: SEAMCALL (0x21) failed: 0xc000090000000000\n[ 2.0] qgsd: ret 0x11001\n"
    result = CliRunner().invoke(explain, ["--all", "-"], input=log)
    assert result.exit_code == 0, result.output
    for title in ("TDX_INCORRECT_CPUID_VALUE", "TEE_ATT_ERROR_UNEXPECTED", "TDH.SYS.INIT"):
        assert title in result.output.splitlines()


@pytest.mark.parametrize("line", ["hello world foo", "rcx 0x0 rdx 0x0", "0x123456789", "qemu: exit status 1"])
def test_a_line_with_nothing_in_it(line: str) -> None:
    with pytest.raises(Unknown):
        find(line)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        # Linux asm/shared/tdx.h and its predecessors; QEMU; edk2 IndustryStandard/Tdx.h
        ("TDVMCALL_MAP_GPA", "TDVMCALL MapGPA"),
        ("TDG_VP_VMCALL_GET_QUOTE", "TDVMCALL GetQuote"),
        ("TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT", "TDVMCALL SetupEventNotifyInterrupt"),
        ("TDVMCALL_GET_TD_VM_CALL_INFO", "TDVMCALL GetTdVmCallInfo"),
        ("TDG.VP.VMCALL<MapGPA>", "TDVMCALL MapGPA"),
        ("TDG.VP.VMCALL<Instruction.CPUID>", "TDVMCALL Instruction.CPUID"),
        ("TDVMCALL_STATUS_RETRY", "RETRY (GHCI)"),
        ("TDG_VP_VMCALL_INVALID_OPERAND", "INVALID_OPERAND (GHCI)"),
        ("TDX_GET_VEINFO", "TDG.VP.VEINFO.GET"),
        ("SEAMCALL_TDH_MNG_ADDCX", "TDH.MNG.ADDCX"),
        ("TDX_SEAMCALL_VMFAILINVALID", "SW_VMFAILINVALID (software-defined)"),
        ("TDX_OPERAND_ID_TD_EPOCH", "operand TD_EPOCH"),
        ("EXIT_REASON_EPT_MISCONFIG", "exit reason EPT_MISCONFIGURATION"),
        ("TDCS_NOTIFY_ENABLES", "NOTIFY_ENABLES"),
        ("GET_QUOTE_IN_FLIGHT", "GET_QUOTE_IN_FLIGHT (GetQuote)"),
        ("INCONSISTENT_MSR | IA32_TSC_ADJUST", "TDX_INCONSISTENT_MSR | MSR 0x3b IA32_TSC_ADJUST"),
    ],
)
def test_names_of_linux_and_others(name: str, title: str) -> None:
    assert run(name)[0] == title


def test_mrseam() -> None:
    for module in MODULES:
        assert len(bytes.fromhex(module.mrseam)) == 48
        assert module.source
        assert run(module.mrseam.upper())[0] == f"MRSEAM of the TDX Module {module.version}"
    assert "no published TDX Module known here" in run("ab" * 48)[1]
