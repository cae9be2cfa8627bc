"""Kernels that ask the module for their topology (Linux 6.13 and later) get it, and do not complain."""

from __future__ import annotations

import pytest

from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import available_kernels, fetch_guest
from swtdx.guests.guest import Guest, cached_guests
from tests.boot.process import watched
from tests.fetching import cannot_fetch

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

COMMAND = r"""
echo '=== cpus'; grep -E '^(physical id|core id|siblings|apicid|initial apicid)' /proc/cpuinfo | tr -d ' \t'
echo '=== dmesg'; dmesg
"""


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


@pytest.fixture(scope="module")
def recent() -> Guest:
    """A kernel of 6.13 or later: cached, or else from the package sources."""
    try:
        cached = [each for each in cached_guests() if _release(each.version) >= (6, 13)]
        if cached:
            return cached[0]
        found = [version for version in available_kernels() if _release(version) >= (6, 13)]
        if not found:
            cannot_fetch("the package sources have no kernel of 6.13 or later")
        return fetch_guest(found[0])
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


def test_three_vcpus(recent: Guest) -> None:
    seen = watched(
        "run", "--guest", recent.version, "--vcpus", "3", "--cpus", "2", "--memory", "256M", "--exec", COMMAND
    )
    assert seen.returncode == 0, (seen.stderr, seen.lines[-20:])
    # One package of three cores of one thread, by the x2APIC ids that TDH.VP.INIT gave.
    assert seen.section("cpus") == [
        line
        for cpu in range(3)
        for line in ("physicalid:0", "siblings:3", f"coreid:{cpu}", f"apicid:{cpu}", f"initialapicid:{cpu}")
    ]
    log = "\n".join(seen.section("dmesg"))
    assert "X2APIC_IDs" not in log, "VMM did not configure X2APIC_IDs properly"
    assert "tdx: TD_CTLS: PENDING_VE_DISABLE ENUM_TOPOLOGY" in log
    assert "CPU topo: Num. cores per package:     3" in log
    assert "CPU topo: Max. threads per core:   1" in log
    assert "APIC ID mismatch" not in log
