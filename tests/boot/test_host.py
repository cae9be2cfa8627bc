"""Linux as the machine's own operating system: an unmodified kernel in VMX root operation."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from swtdx.guests.guest import Guest
from tests.boot.process import swtdx

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

COMMAND = r"""
echo "cpus $(grep -c ^processor /proc/cpuinfo)"; grep -m1 -wo vmx /proc/cpuinfo; uname -r
for cpu in 0 1; do taskset -c $cpu sh -c 'head -c 300000 /dev/zero | sha256sum' & done; wait
for n in 1 2 3 4; do taskset -c 0 sh -c 'echo l >/proc/sysrq-trigger'; done; sleep 0.3
echo "nmis $(grep NMI /proc/interrupts)"
dmesg
exit 7
"""


def test_two_processors_and_a_command(guest: Guest, tmp_path: Path) -> None:
    summary, log = tmp_path / "summary", tmp_path / "log"
    done = swtdx(
        "host", "--kernel", str(guest.kernel), "--cpus", "2", "--memory", "512M", "--timeout", "150",
        "--json", str(summary), "--log", str(log), "--exec", COMMAND,
    )  # fmt: skip
    assert done.returncode == 7, (done.stderr, done.stdout[-2000:])
    lines = done.stdout.splitlines()
    assert lines[:3] == ["cpus 2", "vmx", guest.version]
    assert lines[3:5] == [hashlib.sha256(bytes(300_000)).hexdigest() + "  -"] * 2
    nmis = next(line for line in lines if line.startswith("nmis"))
    assert nmis.split()[2:4] == ["0", "4"], "the machine's own NMIs arrive, and ours do not show"
    assert "smp: Brought up 1 node, 2 CPUs" in done.stdout
    assert re.findall(r".*(?:WARNING|\bBUG\b|Oops|lockup|stall|unstable|Uhhuh).*", done.stdout) == []
    about = json.loads(summary.read_text())
    assert about["command_status"] == 7
    assert about["end"] == "power-off"
    # Interrupts, timers, the console: none of them leaves the kernel's code.
    assert sum(about["stops"].values()) < 10_000
    assert b"Linux version" in log.read_bytes()


def test_a_host_that_hangs_is_ended(guest: Guest) -> None:
    done = swtdx("host", "--kernel", str(guest.kernel), "--timeout", "8", "--exec", "sleep 1000")
    assert done.returncode == 124, done.stderr
    assert "timeout" in done.stderr


def test_a_kernel_that_panics(guest: Guest) -> None:
    done = swtdx(
        "host", "--kernel", str(guest.kernel), "--timeout", "100", "--append", "panic=-1 rdinit=/nothing"
        " init=/nothing", "--exec", "true",
    )  # fmt: skip
    assert done.returncode == 126, done.stderr
    assert "reset" in done.stderr
    assert "panic" in done.stderr


def test_files_are_added(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"words of ours")
    done = swtdx(
        "host", "--kernel", str(guest.kernel), "--timeout", "100", "--add", f"{tmp_path}/folder:/lib/folder",
        "--add", f"{tmp_path}/folder/file", "--exec", "cat file /lib/folder/file",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "words of ours" * 2), done.stderr
    done = swtdx("host", "--kernel", str(guest.kernel), "--add", f"{tmp_path}/folder/file:/bin/busybox")
    assert done.returncode == 125
    assert "/bin/busybox is the host's own" in done.stderr


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (["--kernel", "/dev/null"], "/dev/null"),
        (["--kernel", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--kernel", __file__], "is not a Linux bzImage"),
        (["--kernel", __file__, "--memory", "64M"], "--memory"),
        (["--kernel", __file__, "--memory", "64G"], "--memory"),
        (["--kernel", __file__, "--initrd", "x", "--exec", "true"], "--initrd"),
    ],
)
def test_wrong_use_is_named(words: list[str], saying: str) -> None:
    done = swtdx("host", *words)
    assert done.returncode in (2, 125)
    assert saying in done.stderr
    assert "Traceback" not in done.stderr
