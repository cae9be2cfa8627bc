"""An unmodified Linux kernel as a trust domain, through the command that users type."""

from __future__ import annotations

import base64
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from swtdx.attestation.quote import ParsedQuote
from swtdx.guests import cpio
from swtdx.guests.guest import Guest
from swtdx.guests.initramfs import Exec, default_cmdline
from tests.boot.process import Watched, swtdx, watched

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

MIB = 1 << 20
MEMORY = 512 * MIB
REPORT_DATA = bytes(range(1, 65))
#: What the guest is to do; everything in one boot.
COMMAND = r"""
echo '=== tdx'; dmesg | grep -i tdx; grep -c tdx_guest /proc/cpuinfo; uname -r
echo '=== cmdline'; cat /proc/cmdline
echo '=== device'; rmmod tdx_guest; ls /dev/tdx_guest 2>/dev/null
modprobe tdx_guest; ls /dev/tdx_guest; lsmod | grep -c '^tdx_guest'
echo '=== tdreport'; base64 -d /tmp/data | tdreport | base64
echo '=== quote'; r=/sys/kernel/config/tsm/report/test; mkdir $r; base64 -d /tmp/data >$r/inblob
base64 $r/outblob
echo '=== clocksource'; cat /sys/devices/system/clocksource/clocksource0/current_clocksource
echo '=== clock'; for n in $(seq 20); do cut -d' ' -f1 /proc/uptime; sleep 0.2; done
echo '=== fill'; mount -o remount,size=90% /tmp; dd if=/dev/zero of=/tmp/fill bs=1M count=300 2>/dev/null
ls -l /tmp/fill | awk '{print $5}'; rm /tmp/fill
echo '=== dmesg'; dmesg
"""
DATA = f"echo {base64.b64encode(REPORT_DATA).decode()} >/tmp/data"


class Boot:
    """A boot and its summary."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest = guest
        self.job = Exec(DATA + COMMAND)
        summary = folder / "summary"
        self.seen: Watched = watched(
            "run", "--guest", guest.version, "--memory", f"{MEMORY // MIB}M", "--json", str(summary),
            "--exec", self.job.command,
        )  # fmt: skip
        assert self.seen.returncode == 0, (self.seen.stderr, self.seen.lines[-20:])
        self.summary: dict[str, Any] = json.loads(summary.read_text())
        self.folder = folder

    def blob(self, name: str) -> bytes:
        return base64.b64decode("".join(self.seen.section(name)))

    def measured(self) -> dict[str, str]:
        """What `swtdx measure` makes of the files, without running anything."""
        initrd = self.folder / "initrd"
        initrd.write_bytes(self.guest.initramfs(self.job))
        done = swtdx(
            "measure", "--kernel", str(self.guest.kernel), "--initrd", str(initrd), "--memory",
            f"{MEMORY // MIB}M", "--cmdline", default_cmdline(self.job), "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def boot(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    return Boot(guest, tmp_path_factory.mktemp("linux"))


def test_the_kernel_knows_what_it_is(boot: Boot) -> None:
    lines = boot.seen.section("tdx")
    assert any(line.endswith("tdx: Guest detected") for line in lines)
    assert any("Memory Encryption Features active: Intel TDX" in line for line in lines)
    assert lines[-2:] == ["1", boot.guest.version]
    assert boot.seen.stderr == ""


def test_it_needs_no_option_that_real_hardware_does_not_need(boot: Boot) -> None:
    """A console, how much to print, and how to end after a panic: nothing else."""
    [line] = boot.seen.section("cmdline")
    assert {word.split("=")[0] for word in line.split()} <= {"console", "quiet", "panic", "reboot"}


def test_the_kernel_has_nothing_to_complain_about(boot: Boot) -> None:
    """Not an MSR that faults, no warning, no trace, no clock that is not trusted."""
    log = boot.seen.section("dmesg")
    assert any("Run /init as init process" in line for line in log), "the log is there from end to end"
    assert log[0].startswith("[    0.000000]")
    bad = re.compile(
        r"unchecked MSR|WARNING|\bBUG\b(?!_)|Call Trace|Oops|unstable|lockup|stall|hung task|Unknown symbol|"
        r"Machine [Cc]heck|#VE|segfault|not responding"
    )
    harmless = "and report a bug"
    assert [line for line in log if bad.search(line) and harmless not in line] == []


def test_reports_through_the_device(boot: Boot) -> None:
    assert boot.seen.section("device") == ["/dev/tdx_guest", "1"]
    report = boot.blob("tdreport")
    assert len(report) == 1024
    # TDREPORT_STRUCT: REPORTDATA is at 128 of REPORTMACSTRUCT; TDINFO starts at 512 with ATTRIBUTES, XFAM
    # and MRTD, then three identities of 48 bytes, then the RTMRs.
    assert report[128:192] == REPORT_DATA
    measured = boot.measured()
    assert report[528:576].hex() == measured["mrtd"]
    for n in range(4):
        assert report[720 + 48 * n : 768 + 48 * n].hex() == measured[f"rtmr{n}"], n
    assert measured["rtmr1"] != measured["rtmr2"] != "00" * 48


def test_quotes_through_configfs(boot: Boot) -> None:
    body = ParsedQuote(boot.blob("quote")).body()
    assert body["reportdata"] == REPORT_DATA
    assert body["mrtd"] == boot.blob("tdreport")[528:576]


def test_time_passes_in_the_guest_as_outside(boot: Boot) -> None:
    assert boot.seen.section("clocksource") == ["tsc"]
    points = [(when, float(text)) for when, text in boot.seen.timed_section("clock")]
    assert len(points) == 20
    # A busy machine delays lines: the median of many slopes does not mind a few that came late.
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in itertools.combinations(points, 2)
        if later[1] - earlier[1] >= 2
    ]
    assert statistics.median(slopes) == pytest.approx(1, rel=0.05)


def test_the_time_of_day_is_right_after_a_slow_boot(guest: Guest) -> None:
    """Until Linux trusts the TSC it counts ticks, and with four vCPUs many of them come too late to count."""
    with subprocess.Popen(
        [
            sys.executable, "-m", "swtdx.cli.main", "run", "--guest", guest.version, "--vcpus", "4", "--exec",
            "echo up; while read -r line; do date +%s; done",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        # The guest read its clock between a question and its answer, and tells whole seconds.
        at_least, at_most = [], []
        for _ in range(12):
            asked = time.time()
            print("?", file=process.stdin)
            told = int(process.stdout.readline())
            at_least.append(told - time.time())
            at_most.append(told + 1 - asked)
            time.sleep(0.1)
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 0
    assert max(at_least) < 1, "ahead"
    assert min(at_most) > -1, "behind"


@pytest.mark.parametrize("state", ["mem", "freeze"])
def test_who_suspends_a_td_finds_it_awake_again(guest: Guest, tmp_path: Path, state: str) -> None:
    """With an init of the user's own, that no driver helps."""
    init = (
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t sysfs sys /sys\n"
        f"for n in 1 2; do echo {state} >/sys/power/state && echo awake $n; done\npoweroff -f\n"
    )
    busybox = cpio.regular("bin/busybox", guest.busybox.read_bytes(), 0o755)
    own = [*map(cpio.directory, ("bin", "sys")), busybox, cpio.regular("init", init.encode(), 0o755)]
    (tmp_path / "initrd").write_bytes(cpio.archive(own))
    done = swtdx(
        "run", "--kernel", str(guest.kernel), "--initrd", str(tmp_path / "initrd"), "--timeout", "200"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^awake \d", done.stdout, re.MULTILINE) == ["awake 1", "awake 2"]


def test_memory_stays_within_the_guests_and_300_mib(boot: Boot) -> None:
    """Also of a guest that uses most of what it has."""
    assert boot.seen.section("fill") == [str(300 * MIB)]
    assert 300 * MIB < boot.seen.peak < MEMORY + 300 * MIB, f"{boot.seen.peak / MIB:.0f} MiB"


def test_the_summary_adds_up(boot: Boot) -> None:
    summary = boot.summary
    assert summary["kernel"].startswith(boot.guest.version)
    assert summary["seamcalls"]["TDH.VP.ENTER"] == sum(summary["exits"].values())
    assert summary["exits"]["TDVMCALL"] == sum(summary["tdvmcalls"].values())
    assert summary["pages"]["private_2m"] * 2 * MIB < MEMORY


def test_another_version_another_seed_and_a_command_that_fails(boot: Boot, other_guest: Guest) -> None:
    assert other_guest.version != boot.guest.version
    done = swtdx(
        "run", "--guest", other_guest.version, "--seed", "another", "--exec",
        "dmesg | grep -i 'tdx: guest'; grep -c tdx_guest /proc/cpuinfo; uname -r; false",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("tdx: Guest detected")
    assert lines[1:] == ["1", other_guest.version]


@pytest.mark.parametrize("seed", ["first", "second"])
def test_seeds_do_not_matter(guest: Guest, seed: str) -> None:
    """The whole series of 20 is benchmarks/soak.py."""
    done = swtdx("run", "--guest", guest.version, "--seed", seed, "--exec", "false")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_an_idle_guest_stops_its_tick(guest: Guest) -> None:
    """Without one-shot timers each vCPU would be woken 250 times a second."""
    ticks_now = "$(grep LOC /proc/interrupts | tr -s ' ' | cut -d' ' -f3)"
    command = (
        f"a={ticks_now}; sleep 2; b={ticks_now}; echo $((b - a)); "
        "grep -c 'hres_active *: 1' /proc/timer_list; dmesg | grep -c 'locate IOAPIC'"
    )
    done = subprocess.run(
        [sys.executable, "-m", "swtdx.cli.main", "run", "--guest", guest.version, "--exec", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=250,
        check=False,  # grep that finds nothing fails
    )
    ticks, one_shot, complaints = map(int, done.stdout.split())
    assert one_shot == 1
    assert ticks < 250
    assert complaints == 0, "every ISA interrupt has a place"
