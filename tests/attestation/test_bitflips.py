"""Every single bit of a quote and of its collateral, flipped once."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.attestation.vectors.bitflips import QUOTE, Judge, Material, flip_all, reason, summary
from swtdx.attestation.world import World


def material(version: int) -> Material:
    world = World()
    return Material(
        world.quote(version=version),
        world.collateral(),
        world.pki.root.der,
        int(world.now.timestamp()),
    )


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


@pytest.mark.boot
@pytest.mark.parametrize("version", [4, 5])
def test_every_bit(version: int, tmp_path: Path, record_property: pytest.FixtureRequest) -> None:
    subject = material(version)
    # The collateral is the same for both versions; once is enough.
    tallies = flip_all(subject, only=None if version == 4 else QUOTE)
    text = summary(subject, tallies)
    print(f"\nversion {version}\n{text}")
    record_property("bit flips", text)  # type: ignore[operator]
    (tmp_path / "bitflips.txt").write_text(text)
    for name, content in subject.fields().items():
        if name not in tallies:
            continue
        tally = tallies[name]
        assert tally.tried == 8 * len(content)
        assert tally.tried == tally.rejected + tally.unreadable + len(tally.unnoticed)
        assert tally.harmful == []
        assert [place for place in tally.unnoticed if not reason(subject, name, *place)] == []
    # What signatures cover: not one bit of these goes unnoticed.
    for name in ("root_ca_crl", "pck_crl", "tcb_info", "tcb_info_signature", "qe_identity"):
        if name in tallies:
            assert tallies[name].unnoticed == []
