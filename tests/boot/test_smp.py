"""Linux as a TD with two vCPUs, each on a logical processor of its own."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from swtdx.guests.guest import Guest
from tests.boot.process import watched

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

COMMAND = r"""
echo '=== cpus'; grep -c ^processor /proc/cpuinfo
echo '=== jobs'
for cpu in 0 1; do taskset -c $cpu sh -c 'head -c 3000000 /dev/zero | sha256sum' & done; wait
echo '=== interrupts'; grep LOC /proc/interrupts
echo '=== dmesg'; dmesg
echo '=== nmis'; for n in 1 2 3 4 5 6 7 8; do taskset -c 0 sh -c 'echo l >/proc/sysrq-trigger'; done
sleep 0.5; grep NMI /proc/interrupts; dmesg | grep -c 'NMI backtrace for cpu 1'
"""


def test_two_vcpus(guest: Guest, tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    seen = watched(
        "run", "--guest", guest.version, "--vcpus", "2", "--cpus", "2", "--memory", "256M",
        "--json", str(summary), "--exec", COMMAND,
    )  # fmt: skip
    assert seen.returncode == 0, (seen.stderr, seen.lines[-20:])
    assert seen.section("cpus") == ["2"]
    assert seen.section("jobs") == [hashlib.sha256(bytes(3_000_000)).hexdigest() + "  -"] * 2
    [line] = seen.section("interrupts")
    assert all(int(count) > 10 for count in line.split()[1:3]), "each has its timer"
    # The backtraces of the other processor are asked for by NMIs, through the hypervisor and PEND_NMI.
    counts, backtraces = seen.section("nmis")
    assert counts.split()[1:3] == ["0", "8"]
    assert backtraces == "8"
    log = "\n".join(seen.section("dmesg"))
    assert "smp: Brought up 1 node, 2 CPUs" in log
    assert "wakeup_secondary_cpu_64() replaced with acpi_wakeup_cpu()" in log
    bad = re.findall(r".*(?:WARNING|\bBUG\b|Call Trace|lockup|stall|unstable|unchecked MSR).*", log)
    assert [found for found in bad if "report a bug" not in found] == []
    assert json.loads(summary.read_text())["seamcalls"]["TDH.VP.INIT"] == 2
