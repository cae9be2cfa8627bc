"""MSR and CPUID policies against tdcall.md §5, and the MSR bitmap against the policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.arch import cpuid_policy, cpuid_table, msr_policy
from swtdx.arch.msr_policy import Access, Action
from tests.arch.vectors import lines, masks, words

_PLAIN = {"native": Action.NATIVE, "#VE": Action.VE, "#GP": Action.GP, "special": Action.SPECIAL}
#: Features that the reference only calls OTHER, or names differently.
_FEATURES = {
    "PERFMON": "PERFMON", "UMWAIT": "WAITPKG", "TSX": "TSX", "XFD": "XFD", "XFAM_PT": "PT",
    "XFAM_CET": "CET", "PKS": "PKS", "XFAM_ULI": "UINTR", "XFAM_LBR": "LBR",
}  # fmt: skip


def _check(access: Access, text: str, name: str) -> None:
    if text in _PLAIN:
        assert access == Access(_PLAIN[text]), name
    elif text == "#GP_or_#VE_(feature)":
        assert (access.action, access.enabled) == (Action.GP, Action.VE), name
        assert access.feature
    else:
        feature, _, otherwise = text.removeprefix("dyn_").partition("/")
        assert (access.action, access.enabled) == (_PLAIN[otherwise], Action.NATIVE), name
        bit = msr_policy.FEATURE_NAMES[access.feature.bit_length() - 1]
        if feature != "OTHER":
            assert bit == _FEATURES[feature], name


def test_every_msr_of_the_reference_has_its_policy_and_no_other() -> None:
    rows = words("msrs.txt")
    assert len(rows) == len(msr_policy.RULES)
    for (first, last, name, read, write), rule in zip(rows, msr_policy.RULES, strict=True):
        assert (rule.first, rule.last) == (int(first, 16), int(last, 16)), name
        if not name.startswith("Reserved"):
            assert rule.name == name
        _check(rule.read, read, name)
        _check(rule.write, write, name)


def test_rules_ascend_and_do_not_overlap() -> None:
    end = -1
    for rule in msr_policy.RULES:
        assert end < rule.first <= rule.last
        end = rule.last


#: tdcall.md §5.3, "Special handling": what must leave the guest, whatever features it has.
@pytest.mark.parametrize(
    "msr", [0x1B, 0xFE, 0x200, 0x2FF, 0x17A, 0x400, 0x802, 0x830, 0x838, 0x2000, 1 << 31]
)
def test_msrs_outside_the_table_raise_ve(msr: int) -> None:
    for features in (0, (1 << 15) - 1):
        for write in (False, True):
            assert msr_policy.decide(msr, features, write=write) is Action.VE


@given(
    st.integers(0, (1 << 15) - 1),
    st.one_of(st.integers(0, 0x1FFF), st.integers(0xC0000000, 0xC0001FFF)),
    st.booleans(),
)
def test_the_bitmap_lets_through_what_the_policy_calls_native(features: int, msr: int, write: bool) -> None:
    # Intel SDM volume 3, "MSR-Bitmap Address": low reads, high reads, low writes, high writes, 1 KiB each.
    page = msr_policy.bitmap(features)
    bit = (msr & 0x1FFF) + 8 * 1024 * ((msr >> 31) + 2 * write)
    exits = bool(page[bit // 8] >> bit % 8 & 1)
    assert exits == (msr_policy.decide(msr, features, write=write) is not Action.NATIVE)


# ------------------------------------------------------------------ CPUID
def _rows() -> dict[tuple[int, int], tuple[str, str, str, str]]:
    found = {}
    for line in lines("cpuid.txt"):
        where, behaviour, cleared, fixed, config = line.split(";")
        leaf, _, subleaf = where.partition(".0x")
        if ".." in subleaf:  # 0x2..0x12
            first, _, last = subleaf.partition("..0x")
            numbers = range(int(first, 16), int(last, 16) + 1)
        else:
            numbers = [int(subleaf, 16)] if subleaf else [cpuid_policy.NA]  # type: ignore[assignment]
        for number in numbers:
            found[int(leaf, 16), number] = behaviour, cleared, fixed, config
    return found


def test_every_cpuid_leaf_of_the_reference_is_there_and_no_other() -> None:
    expected = _rows()
    # The reference writes leaves without sub-leaf as such, except for those of one row.
    ours = {(row.leaf, row.subleaf): row for row in cpuid_table.ROWS}
    assert set(ours) == set(expected)
    for key, (behaviour, cleared, fixed, config) in expected.items():
        row = ours[key]
        assert row.faulting == (behaviour == "always #VE"), key
        if row.faulting:
            continue
        assert row.cleared == masks(cleared), key
        assert row.fixed1 == masks(fixed), key
        assert row.config == (None if config == "–" else int(config)), key


def test_configurable_cpuid() -> None:
    rows = sorted((line.split(";") for line in lines("cpuid_config.txt")), key=lambda row: int(row[0]))
    assert len(rows) == len(cpuid_table.CONFIG_ROWS) == 12
    for (index, leaf, subleaf, direct, allow), row in zip(rows, cpuid_table.CONFIG_ROWS, strict=True):
        assert row.index == int(index)
        assert row.leaf == int(leaf, 16)
        assert row.subleaf == (cpuid_policy.NA if subleaf == "n/a" else int(subleaf, 16))
        assert row.direct == masks(direct), index
        assert row.allow == masks(allow), index


def test_bit_classes_share_out_every_bit() -> None:
    for row in cpuid_table.TOPOLOGY_CPUID.rows:
        classes = cpuid_policy.bit_classes(row)
        shared = (classes.fixed0, classes.fixed1, classes.direct, classes.allow, classes.native)
        for register in range(4):
            values = [quad[register] for quad in shared]
            assert sum(value.bit_count() for value in values) == 32, f"{row.leaf:#x}.{row.subleaf:#x}"
            assert values[0] | values[1] | values[2] | values[3] | values[4] == 0xFFFF_FFFF


def test_the_tdx_leaf_spells_its_name() -> None:
    # Linux, TDX_CPUID_LEAF_ID and TDX_IDENT: EBX, EDX, ECX of leaf 0x21.
    row = cpuid_table.BASE_CPUID.lookup(0x21, 0)
    assert row is not None
    _, ebx, ecx, edx = row.fixed1
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx)) == b"IntelTDX    "


@given(st.integers(0, 0x7F), st.one_of(st.just(cpuid_policy.NA), st.integers(0, 0x7F)), st.booleans())
def test_field_codes_come_back(low: int, subleaf: int, extended: bool) -> None:
    leaf = low | extended << 31
    for element in (0, 1):
        code = cpuid_policy.field_code(leaf, subleaf, element)
        assert cpuid_policy.split_field_code(code) == (leaf, subleaf, element)
        # structures.md §13.1: element 0, sub-leaf 7:1, no sub-leaf 8, leaf 15:9, its bit 31 in 16.
        assert (code >> 9 & 0x7F, code >> 16) == (low, int(extended))


@pytest.mark.parametrize(
    ("leaf", "answers"),
    [
        (0x24, 0x23),
        (0x100, 0x23),
        (0x80000009, 0x23),
        (0x40000000, 0x40000000),
        (0x80000008, 0x80000008),
        (2, 2),
    ],
)
def test_leaves_beyond_the_end(leaf: int, answers: int) -> None:
    assert cpuid_policy.effective_leaf(leaf) == answers
