"""What OVMF says when it has nothing to boot: recorded, and cut wherever it may be cut."""

from __future__ import annotations

import pytest

from swtdx.vmm.firmware_words import FirmwareWords

#: On the serial port: OVMF 2026.08 with Microsoft's keys, and OVMF 2025.02 with nothing to boot.
REFUSED = (
    b"\x1b[2J\x1b[001;001HOVMF: Secure boot image verification failed.  Consider using the '-shim'\r\n"
    b'BdsDxe: failed to load Boot0001 "UEFI Non-Block Boot Device" from VenMedia(1428F772): Not Found\r\n'
    b"BdsDxe: No bootable option or device was found.\r\n"
    b"BdsDxe: Press any key to enter the Boot Manager Menu.\r\n"
)
NOTHING = b"\x1b[2J\x1b[01;01HBdsDxe: No bootable option or device was found.\r\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(("text", "reason"), [(REFUSED, "virt-fw-vars"), (NOTHING, "says so")])
def test_it_gave_up(step: int, text: bytes, reason: str) -> None:
    shown = bytearray()
    reasons: list[str] = []
    words = FirmwareWords(shown.extend, reasons.append)
    for at in range(0, len(text), step):
        words.write(text[at : at + step])
    words.write(text)
    assert bytes(shown) == text + text
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_other_words_end_nothing() -> None:
    reasons: list[str] = []
    words = FirmwareWords(bytearray().extend, reasons.append)
    words.write(b"[    0.000000] Linux version 6.12\n" * 1000)
    words.write(b"BdsDxe: starting Boot0001\r\n")
    assert reasons == []
