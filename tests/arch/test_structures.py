"""Structures against structures.md, byte by byte, and against what Linux and the SDM say."""

from __future__ import annotations

import pytest

from swtdx.arch import td_config
from swtdx.arch.layout import Array, Struct
from swtdx.arch.platform_structs import TD_PARAMS, TDMR_INFO, TDSYSINFO_STRUCT
from swtdx.arch.report_structs import REPORTMACSTRUCT, TDINFO, TDREPORT, TEE_TCB_INFO
from swtdx.arch.seam_structs import SEAM_SIGSTRUCT, SEAMEXTEND, SEAMLDR_INFO, SEAMLDR_PARAMS
from tests.arch.vectors import lines

LAYOUTS = {
    layout.name: layout
    for layout in (
        TDSYSINFO_STRUCT, TD_PARAMS, REPORTMACSTRUCT, TEE_TCB_INFO, TDINFO, SEAMLDR_PARAMS, SEAM_SIGSTRUCT,
    )
}  # fmt: skip
SIZES = {
    "TDSYSINFO_STRUCT": 1024, "TD_PARAMS": 1024, "REPORTMACSTRUCT": 256, "TEE_TCB_INFO": 239, "TDINFO": 512,
    "SEAMLDR_PARAMS": 4096, "SEAM_SIGSTRUCT": 2048,
}  # fmt: skip


def _boundaries(layout: type[Struct]) -> dict[int, int]:
    """Offset and size of everything declared, elements of arrays by themselves."""
    found = {}
    for member in layout.fields.values():
        if isinstance(member, Array):
            for index in range(member.count):
                found[member.offset + index * member.stride] = member.size
        found[member.offset] = (
            found.get(member.offset, member.span) if isinstance(member, Array) else member.span
        )
    return found


@pytest.mark.parametrize("line", [line for line in lines("structures.txt") if line.split()[0] in LAYOUTS])
def test_a_field_is_where_the_reference_has_it(line: str) -> None:
    name, offset, size, field = line.split(maxsplit=3)
    found = _boundaries(LAYOUTS[name])
    if field.startswith("reserved") and int(offset) not in found:
        # Not declared is reserved, too.
        covered = {byte for start, length in found.items() for byte in range(start, start + length)}
        assert not covered & set(range(int(offset), int(offset) + int(size))), line
        return
    assert found.get(int(offset)) == int(size), line


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_sizes(name: str, size: int) -> None:
    assert LAYOUTS[name].size == size


def test_tdmr_info() -> None:
    # Linux, struct tdmr_info: base and size of the TDMR, of the 1G, 2M and 4K PAMT, reserved areas.
    names = ("tdmr_base", "tdmr_size", "pamt_1g_base", "pamt_1g_size", "pamt_2m_base", "pamt_2m_size",
             "pamt_4k_base", "pamt_4k_size")  # fmt: skip
    assert [getattr(TDMR_INFO, name).offset for name in names] == [8 * n for n in range(8)]
    assert (TDMR_INFO.rsvd_areas.offset, TDMR_INFO.rsvd_areas.count, TDMR_INFO.size) == (64, 32, 320)


def test_td_params_as_linux_declares_them() -> None:
    offsets = {
        "attributes": 0, "xfam": 8, "max_vcpus": 16, "eptp_controls": 24, "config_flags": 32,
        "tsc_frequency": 40, "mrconfigid": 80, "mrowner": 128, "mrownerconfig": 176, "cpuid_config": 256,
    }  # fmt: skip
    assert {name: getattr(TD_PARAMS, name).offset for name in offsets} == offsets


def test_loader_structures() -> None:
    # structures.md §12: SEAMEXTEND and SEAMLDR_INFO.
    assert (SEAMEXTEND.size, SEAMLDR_INFO.size) == (136, 256)
    assert (SEAMEXTEND.mrseam.offset, SEAMEXTEND.seam_ready.offset) == (24, 128)


def test_the_report_is_made_of_its_parts() -> None:
    assert TDREPORT.size == 1024
    assert (TDREPORT.tee_tcb_info.offset, TDREPORT.td_info.offset) == (256, 512)


def test_attributes_and_xfam() -> None:
    # structures.md §5; Linux, TDX_TD_ATTR_*.
    assert td_config.ATTRIBUTES_FIXED0 == 0x8000000070000001
    bits = {"DEBUG": 0, "SEPT_VE_DISABLE": 28, "PKS": 30, "KL": 31, "PERFMON": 63}
    assert {name: number for number, name in td_config.ATTRIBUTE_NAMES.items() if name in bits} == bits
    assert td_config.XFAM_FIXED0 == 0x6DBE7
    for xfam, allowed in (
        (0x3, True), (0x7, True), (0xE7, True), (0x1803, True), (0x60003, True), (0x6DBE7, True),
        (0x1, False), (0x2, False), (0x27, False), (0xE3, False), (0x803, False), (0x20003, False),
        (0xB, False), (0x403, False), (0x10003, False), (1 << 63 | 3, False),
    ):  # fmt: skip
        assert (td_config.xfam_problem(xfam) is None) == allowed, hex(xfam)
    assert td_config.attributes_problem(1 << 29 | 1) is not None
    assert td_config.attributes_problem(1 << 28 | 1) is None
    assert td_config.shared_bit(0) == 1 << 47
    assert td_config.shared_bit(1) == 1 << 51
