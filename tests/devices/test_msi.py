"""MSI messages: the bits of Intel SDM vol. 3, and who is interrupted."""

from __future__ import annotations

from functools import partial

import pytest

from swtdx.devices.msi import MsiMessage, MsiRouter


def test_decoding() -> None:
    # To APIC id 0x21, physical, fixed, vector 0x35, edge: what Linux composes for that.
    assert MsiMessage.decode(0xFEE2_1000, 0x0035) == MsiMessage(0x21, 0x35, 0, False, False)
    # Lowest priority, logical, redirection hint.
    assert MsiMessage.decode(0xFEE0_300C, 0x0141) == MsiMessage(3, 0x41, 1, True, False)
    assert MsiMessage.decode(0xFED0_0000, 0x35) is None


def router() -> tuple[MsiRouter, list[tuple[int, int]]]:
    got: list[tuple[int, int]] = []
    return MsiRouter(
        {apic: partial(lambda apic, vector: got.append((apic, vector)), apic) for apic in (0, 1, 5)}
    ), got


@pytest.mark.parametrize(
    ("address", "data", "expected"),
    [
        (0xFEE0_0000, 0x40, [(0, 0x40)]),
        (0xFEE0_5000, 0x40, [(5, 0x40)]),
        (0xFEEF_F000, 0x40, [(0, 0x40), (1, 0x40), (5, 0x40)]),
        (0xFEE2_2004, 0x40, [(1, 0x40), (5, 0x40)]),  # logical: bits 1 and 5
        (0xFEE2_200C, 0x140, [(1, 0x40)]),  # lowest priority: one of them
        (0xFEE0_7000, 0x40, []),  # nobody
        (0xFEE0_0000, 0x1F, []),  # an exception's vector
        (0xFEE0_0000, 0x400, []),  # NMI
        (0x1000, 0x40, []),
    ],
)
def test_delivery(address: int, data: int, expected: list[tuple[int, int]]) -> None:
    route, got = router()
    assert route.deliver(address, data) is bool(expected)
    assert got == expected
    assert route.dropped == (not expected)
