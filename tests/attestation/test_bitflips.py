"""Every single bit of a quote and of its collateral, flipped once."""

from __future__ import annotations

import re
from pathlib import Path

import dcap_qvl
import pytest

from swtdx.attestation.vectors.bitflips import Judge, reason
from swtdx.attestation.vectors.flip_record import NO_REASON, material, record

RECORD = Path(__file__).parents[2] / "docs" / "attestation-bitflips.md"


@pytest.mark.parametrize("version", [4, 5])
def test_one_bit_in_sixteen_bytes(version: int) -> None:
    # The quick look: a walk through everything that meets every part and every bit position.
    subject = material(version)
    judge = Judge(subject)
    for name, content in subject.fields().items():
        value = bytearray(content)
        for byte in range(0, len(value), 16):
            bit = byte // 16 % 8
            value[byte] ^= 1 << bit
            outcome = judge.flip(name, value)
            value[byte] ^= 1 << bit
            if outcome not in ("rejected", "unreadable"):
                assert outcome == "unnoticed", (name, byte, bit)
                assert reason(subject, name, byte, bit), (name, byte, bit)


def tried(text: str) -> list[tuple[str, ...]]:
    """The first two columns of the tables of counts."""
    return re.findall(r"^\| (\w+) \| (\d+) \| \d+ \| \d+ \| \d+ \| \d+ \|$", text, re.M)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_bit_and_the_record_of_it() -> None:
    text, tallies = record()
    for version, by_field in tallies.items():
        contents = material(version).fields()
        for name, tally in by_field.items():
            assert tally.tried == 8 * len(contents[name])
            assert tally.tried == tally.rejected + tally.unreadable + len(tally.unnoticed)
            assert tally.harmful == []
    assert NO_REASON not in text
    # What signatures cover: not one bit of these goes unnoticed.
    for name in ("root_ca_crl", "pck_crl", "tcb_info", "tcb_info_signature", "qe_identity"):
        assert tallies[4][name].unnoticed == []
    assert set(tallies[4]) == set(material(4).fields())
    assert set(tallies[5]) == {"quote"}
    # The record in docs/ is this one; if not, `swtdx vectors flips -o docs/attestation-bitflips.md`.
    recorded = RECORD.read_text(encoding="utf-8")
    assert tried(recorded) == tried(text)
    if f"dcap-qvl {dcap_qvl.__version__}," in recorded:
        assert recorded == text
