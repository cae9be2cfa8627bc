"""The tiny guest, executed: what it prints and how it ends."""

from __future__ import annotations

import random

import pytest

from swtdx.guests.direct_boot import build_tiny_boot
from tests.guests.td_model import PoweredOff, TdModel

#: Sleep control register and the value for S5; the device's own constants are compared below.
SLEEP_PORT, SLEEP_VALUE = 0x605, 0x20


def test_it_says_hello_shows_the_report_and_powers_off() -> None:
    report = random.Random(1).randbytes(1024)
    td = TdModel(build_tiny_boot().pages, power_off_port=SLEEP_PORT, report=report)
    with pytest.raises(PoweredOff, match=f"^{SLEEP_VALUE:#x}$"):
        td.start()
    lines = td.serial.decode("ascii").split("\r\n")
    assert lines[0] == "Hello from inside a trust domain!"
    values = {line[2:16].strip(): line[17:].strip() for line in lines if line.startswith("  ")}
    assert values["GPA width"] == f"{td.gpaw:016x}"
    assert values["ATTRIBUTES"] == f"{0x10000000:016x}"
    assert values["vCPUs max|num"] == f"{1 | 4 << 32:016x}"
    # Offsets of TDREPORT_STRUCT: TDINFO at 512 with MRTD 16 bytes into it; TEE_INFO_HASH at 80.
    assert values["MRTD"] == report[528:576].hex()
    assert values["TEE_INFO_HASH"] == report[80:128].hex()


def test_its_sleep_port_is_the_devices() -> None:
    power = pytest.importorskip("swtdx.devices.power")
    assert (power.SLEEP_CONTROL_PORT, power.POWER_OFF_VALUE) == (SLEEP_PORT, SLEEP_VALUE)


def test_other_vcpus_stay_silent() -> None:
    td = TdModel(build_tiny_boot().pages)
    td.reset(vcpu=1)
    td.run(count=1000)
    assert not td.leaves
