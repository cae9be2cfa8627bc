"""Structures as classes: what is refused when one is declared, what mypy sees, how a value prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.arch.bits import BitField, Register
from swtdx.arch.control_structs import TDCS, TDR
from swtdx.arch.layout import Array, Blob, Field, LayoutError, Struct
from swtdx.arch.states import Lifecycle, OpState
from swtdx.arch.td_config import ATTRIBUTES, EPTP

ROOT = Path(__file__).parents[2]


def test_overlap_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(LayoutError, match=r"PAIR\.first and PAIR\.second overlap at byte 7"):

        class PAIR(Struct, size=16):
            first = Field(0, 8)
            second = Field(7, 8)


def test_a_member_of_a_base_takes_its_place_too() -> None:
    class BASE(Struct, size=8):
        low = Field(0, 4)

    class LONGER(BASE, size=16):
        high = Field(8, 8)

    assert list(LONGER.fields) == ["low", "high"]
    assert list(BASE.fields) == ["low"]
    with pytest.raises(LayoutError, match="overlap"):

        class CLASH(BASE, size=16):
            high = Field(2, 8)


@pytest.mark.parametrize(
    "member",
    [Field(10, 8), Array(8, 2, 5), Array(0, 4, 2, stride=13), Blob(0, 17)],
    ids=lambda m: str(m.span),
)
def test_a_member_beyond_the_end_is_refused(member: Field | Array | Blob) -> None:
    with pytest.raises(LayoutError, match="beyond the 16 bytes"):
        type("SHORT", (Struct,), {"member": member}, size=16)


def test_a_member_cannot_hide_what_every_structure_has() -> None:
    with pytest.raises(LayoutError, match="call it size_"):
        type("NAMED", (Struct,), {"size": Field(0, 8)}, size=8)


def test_a_member_belongs_to_one_structure() -> None:
    with pytest.raises(LayoutError, match="belongs to one structure"):
        type("THIEF", (Struct,), {"taken": TDR.hkid}, size=4096)


def test_a_layout_is_not_made_into_an_object() -> None:
    with pytest.raises(TypeError, match=r"TDCS\.new\(\)"):
        TDCS()


@pytest.mark.parametrize("base", [0, 3])
def test_what_is_written_is_little_endian_and_touches_nothing_else(base: int) -> None:
    class MIXED(Struct, size=32):
        word = Field(5, 4)
        items = Array(12, 2, 3, stride=5)

    buffer = bytearray(b"\xaa" * (32 + base))
    MIXED.word.set(buffer, 0x01020304, base)
    MIXED.items.set(buffer, 2, 0xBEEF, base)
    expected = bytearray(b"\xaa" * (32 + base))
    expected[base + 5 : base + 9] = b"\4\3\2\1"
    expected[base + 22 : base + 24] = b"\xef\xbe"
    assert buffer == expected
    assert MIXED.word.get(memoryview(buffer), base) == 0x01020304
    assert MIXED.items.all(buffer, base) == [0xAAAA, 0xAAAA, 0xBEEF]
    with pytest.raises(LayoutError, match=r"MIXED\.word: 0x100000000 does not fit"):
        MIXED.word.set(buffer, 1 << 32, base)
    with pytest.raises(LayoutError, match=r"MIXED\.items has elements 0..2, not 3"):
        MIXED.items.get(buffer, 3)


def test_values_print_themselves() -> None:
    page = TDCS.new()
    TDCS.op_state.set(page, OpState.RUNNABLE)
    TDCS.attributes.set(page, 1 << 28 | 1 << 30 | 1 << 40)
    TDCS.eptp.set(page, 0x12345000 | 3 << 3 | 6)
    shown = TDCS.describe(page)
    assert shown["op_state"] == "RUNNABLE"
    assert shown["attributes"] == "SEPT_VE_DISABLE PKS bit 40"
    assert shown["eptp"] == "memory_type=0x6 walk_length_minus_1=0x3 base=0x12345"
    assert shown["num_vcpus"] == 0
    assert TDR.lifecycle_state.show(Lifecycle.BLOCKED) == "BLOCKED"
    assert TDR.lifecycle_state.show(9) == "9 (not a Lifecycle)"
    assert TDR.hkid.show(0x21) == "0x21"


def test_a_register_knows_its_bits() -> None:
    value = EPTP(0x12345000 | 3 << 3 | 6)
    assert (value.memory_type, value.walk_length_minus_1, value.enable_ad, value.base) == (6, 3, 0, 0x12345)
    assert EPTP.base.mask == (1 << 52) - (1 << 12)
    assert value | 1 == 0x12345000 | 3 << 3 | 7
    assert str(ATTRIBUTES(0)) == "0"
    assert repr(ATTRIBUTES(1)) == "<ATTRIBUTES 0x1: DEBUG>"
    with pytest.raises(ValueError, match=r"TWICE\.low and high overlap at bit 3"):
        type("TWICE", (Register,), {"low": BitField(3, 0), "high": BitField(7, 3)})
    with pytest.raises(ValueError, match="beyond the 8 bits"):
        type("NARROW", (Register,), {"far": BitField(8)}, width=8)


SNIPPET = """
from swtdx.arch.bits import BitField
from swtdx.arch.control_structs import TDCS, TDVPS
from swtdx.arch.layout import Field
from swtdx.arch.td_config import EPTP
from swtdx.attestation.quote import TD_BODY_1_5

page = TDCS.new()
good: int = TDCS.attributes.get(page) + TDVPS.gpr.get(page, 2) + TD_BODY_1_5.xfam.get(page)
hash: bytes = TDCS.mrtd.get(page)
field: Field = TDCS.xfam
length: int = EPTP(good).walk_length_minus_1
bit: BitField = EPTP.enable_ad
TDCS.atributes.get(page)
TDVPS.gpr.get(page)
EPTP(good).walk_lenght
number: int = TDCS.mrtd.get(page)
"""
WRONG = {
    14: '"type[TDCS]" has no attribute "atributes"',
    15: 'Missing positional argument "index"',
    16: '"EPTP" has no attribute "walk_lenght"',
    17: 'expression has type "bytes", variable has type "int"',
}


def test_mypy_knows_every_member(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(snippet)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {}
    for line in checked.stdout.splitlines():
        if ": error: " in line:
            place, words = line.split(": error: ")
            found[int(place.rsplit(":", 1)[1])] = words
    assert found.keys() == WRONG.keys(), checked.stdout + checked.stderr
    for number, words in WRONG.items():
        assert words in found[number]
