"""TDs that start with Debian's OVMF, through the command that users type.

An image that a test wants is fetched from its release's package sources.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swtdx.attestation.eventlog.acpi import split
from swtdx.attestation.eventlog.format import parse
from swtdx.attestation.eventlog.replay import replay
from swtdx.attestation.quote import ParsedQuote
from swtdx.guests import cpio
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.firmware import Firmware, fetch_firmware
from swtdx.guests.guest import Guest
from swtdx.guests.initramfs import Exec, default_cmdline
from swtdx.measure.tdvf import parse_tdvf
from tests.boot.process import SWTDX, swtdx, watched
from tests.fetching import cannot_fetch

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network, pytest.mark.slow]

COMMAND = r"""
echo '=== kernel'; uname -r; grep -c tdx_guest /proc/cpuinfo; nproc; cat /proc/cmdline
echo '=== memory'; grep MemTotal /proc/meminfo
echo '=== quote'; r=/sys/kernel/config/tsm/report/test; mkdir $r; head -c 64 /dev/zero >$r/inblob
base64 $r/outblob
echo '=== log'; base64 /sys/firmware/acpi/tables/data/CCEL
echo '=== dmesg'; dmesg
"""


def image(suite: str | None, package: str = "ovmf") -> Firmware:
    try:
        return fetch_firmware(suite, package)
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


@dataclass
class Booted:
    firmware: Firmware
    job: Exec
    guest: Guest
    vcpus: str
    sections: dict[str, list[str]]

    def blob(self, name: str) -> bytes:
        return base64.b64decode("".join(self.sections[name]))


def booted(suite: str, guest: Guest, vcpus: str) -> Booted:
    firmware = image(suite)
    job = Exec(COMMAND)
    seen = watched(
        "run", "--guest", guest.version, "--firmware", str(firmware.image), "--vcpus", vcpus,
        "--append", "swtdx.test=1", "--exec", COMMAND,
    )  # fmt: skip
    assert seen.returncode == 0, (seen.stderr, seen.lines[-20:])
    sections = {name: seen.section(name) for name in ("kernel", "memory", "quote", "log", "dmesg")}
    return Booted(firmware, job, guest, vcpus, sections)


def predicted(boot: Booted, folder: Path, cmdline: str) -> dict[str, Any]:
    """What `swtdx measure` finds out by executing firmware and kernel, without the guest's userspace."""
    initrd = folder / "initrd"
    initrd.write_bytes(boot.guest.initramfs(boot.job))
    done = swtdx(
        "measure", "--firmware", str(boot.firmware.image), "--kernel", str(boot.guest.kernel), "--initrd",
        str(initrd), "--cmdline", cmdline, "--vcpus", boot.vcpus, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["entered"], found["end"]
    return found


@pytest.fixture(scope="module", params=["trixie", "sid"])
def boot(request: pytest.FixtureRequest, guest: Guest) -> Booted:
    return booted(request.param, guest, "1" if request.param == "trixie" else "3")


def test_the_kernel_runs_and_the_command_too(boot: Booted) -> None:
    release, tdx, vcpus, cmdline = boot.sections["kernel"]
    assert release == boot.guest.version
    assert tdx == vcpus
    given = f"{default_cmdline(boot.job)} swtdx.test=1"
    assert cmdline in (f"{given} initrd=initrd", f"initrd=initrd {given}"), "one word is OVMF's"
    log = boot.sections["dmesg"]
    assert any("efi: EFI v2" in line and "EDK II" in line for line in log)
    assert not [line for line in log if "Call Trace" in line or "unchecked MSR" in line]


def test_mrtd_is_the_offline_computation_s(boot: Booted) -> None:
    quote = ParsedQuote(boot.blob("quote")).body()
    assert quote["mrtd"] == parse_tdvf(boot.firmware.image.read_bytes()).measure().digest()


def test_the_log_replays_to_the_quote_s_registers(boot: Booted) -> None:
    quote = ParsedQuote(boot.blob("quote")).body()
    events = parse(boot.blob("log"))
    assert replay(events) == [quote[f"rtmr{number}"] for number in range(4)]
    assert all(any(quote[f"rtmr{number}"]) for number in range(3))
    # What the firmware measured of ours: the kernel's Authenticode hash comes from the unchanged file.
    kinds = {event.kind_name for event in events}
    assert {"EV_EFI_BOOT_SERVICES_APPLICATION", "EV_EFI_HANDOFF_TABLES2", "EV_SEPARATOR"} <= kinds
    initrd = hashlib.sha384(boot.guest.initramfs(boot.job)).digest()
    assert [event for event in events if event.digest == initrd and event.rtmr == 2]


def test_registers_are_predicted_by_execution(boot: Booted, tmp_path: Path) -> None:
    quote = ParsedQuote(boot.blob("quote")).body()
    cmdline = f"{default_cmdline(boot.job)} swtdx.test=1"
    found = predicted(boot, tmp_path, cmdline)
    assert found["mrtd"] == quote["mrtd"].hex()
    assert [found[f"rtmr{number}"] for number in range(4)] == [
        quote[f"rtmr{number}"].hex() for number in range(4)
    ]
    events = parse(boot.blob("log"))
    assert [event["digest"] for event in found["events"]] == [event.digest.hex() for event in events]
    assert all(event["type"] and event["digest_is_of_data"] is not False for event in found["events"])

    # One byte of the command line: the kernel's own measurement of it, and nothing else.
    other = predicted(boot, tmp_path, cmdline[:-1] + "2")
    differ = [name for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3") if found[name] != other[name]]
    assert differ == ["rtmr2"]
    [index] = [n for n, event in enumerate(found["events"]) if event != other["events"][n]]
    assert "LoadOptions" in found["events"][index]["text"]

    # And so says the comparison; with the guest's own log there is nothing to say.
    for name, data in (("ccel", boot.blob("log")), ("found", found), ("other", other)):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    same = swtdx("eventlog", "diff", str(tmp_path / "ccel"), str(tmp_path / "found"))
    assert (same.returncode, same.stdout.count("is the same")) == (0, 4)
    changed = swtdx("eventlog", "diff", str(tmp_path / "found"), str(tmp_path / "other"))
    assert changed.returncode == 1
    assert "'swtdx.test=1' in A is 'swtdx.test=2' in B" in changed.stdout
    # What the digests are of; among them OVMF's Authenticode hash of the kernel, and ours of the file.
    named = {event.get("measured") for event in found["events"]}
    assert {"TD HOB", "etc/acpi/tables", "etc/table-loader", "CFV section of the image"} <= named
    assert {"kernel (Authenticode)", "kernel command line", "initrd"} <= named


def test_firmware_of_2022_that_passes_rbp(guest: Guest) -> None:
    """Bookworm's has no event log yet: all that can be seen are MRTD and that it boots."""
    firmware = image("bookworm")
    job = "uname -r; tdreport </dev/null | tail -c +529 | head -c 48 | xxd -p -c 48"
    done = swtdx("run", "--guest", guest.version, "--firmware", str(firmware.image), "--exec", job)
    assert done.returncode == 0, done.stderr
    mrtd = parse_tdvf(firmware.image.read_bytes()).measure().digest()
    assert done.stdout.split() == [guest.version, mrtd.hex()]


#: Unaccepted memory in kB, before and behind huge pages that take nearly all of it (they are not written to).
LAZY = """
u() { sed -n 's/^Unaccepted: *//p' /proc/meminfo; }
u; echo 1250 >/proc/sys/vm/nr_hugepages; cat /proc/sys/vm/nr_hugepages; u
dmesg | grep -c -e 'Kernel panic' -e 'Call Trace'
"""


@pytest.mark.parametrize("how", ["lazy", "eager"])
def test_memory_that_firmware_hands_over_unaccepted(guest: Guest, how: str) -> None:
    """A size that is no multiple of 1 GiB, of which 952 MiB are above 4 GiB: OVMF accepts what is below."""
    done = swtdx(
        "run", "--guest", guest.version, "--firmware", str(image("trixie").image), "--memory", "3000M",
        "--append", f"accept_memory={how}", "--exec", LAZY,
    )  # fmt: skip
    before, pages, after, complaints = done.stdout.splitlines()
    assert (int(before.split()[0]) > 256 << 10) == (how == "lazy")
    assert pages == "1250", done.stdout
    assert after == "0 kB"
    assert complaints == "0"


@pytest.mark.parametrize("suite", [None, "trixie"])
def test_a_restart_builds_a_new_td(guest: Guest, suite: str | None) -> None:
    """Each boot of Linux has an id of its own; Ctrl-C ends the series."""
    firmware = () if suite is None else ("--firmware", str(image(suite).image))
    job = "cat /proc/sys/kernel/random/boot_id; reboot -f; sleep 1000"
    with subprocess.Popen(
        [*SWTDX, "run", "--guest", guest.version, *firmware, "--restart", "--no-stdin", "--exec", job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert len(first) == len(second) == 37
    assert first != second
    assert "the guest restarts: it is a new TD now" in said


def test_secure_boot_refuses_and_the_tool_says_so(guest: Guest) -> None:
    firmware = image("sid", "ovmf-inteltdx")
    done = swtdx("run", "--guest", guest.version, "--firmware", str(firmware.image), "--exec", "true")
    assert done.returncode == 126
    assert "the firmware found nothing to boot: it has Secure Boot on" in done.stderr
    assert "virt-fw-vars" in done.stderr


def test_tables_of_the_qemu_here_are_those_that_its_guests_have(guest: Guest, tmp_path: Path) -> None:
    """`--like-qemu` measures what OVMF in a plain VM of this QEMU hands to Linux for the same line."""
    firmware = image("trixie")
    # Without devices: where firmware puts their BARs is a window of the DSDT's.  With a PIC, which a plain VM
    # needs and a TD has not.
    line = "-machine q35,smm=off,pic=on,hpet=off -m 512M -smp 2 -nodefaults"
    job = Exec("true")
    (tmp_path / "initrd").write_bytes(guest.initramfs(job))
    done = swtdx(
        "measure", "--firmware", str(firmware.image), "--kernel", str(guest.kernel), "--initrd",
        str(tmp_path / "initrd"), "--like-qemu", f"{line} -serial stdio", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["entered"], found["end"]
    [measured] = [each for each in found["events"] if each.get("measured") == "etc/acpi/tables"]
    tables = {name: table for name, _, table in split(bytes.fromhex(measured["measured_bytes"])) if name}

    shell = b"#!/bin/sh\nexport PATH=/bin\n/bin/busybox mkdir /s\n/bin/busybox mount -t sysfs s /s\n"
    shell += b'cd /s/firmware/acpi/tables\nfor t in DSDT MCFG APIC WAET; do /bin/busybox echo "== $t"\n'
    shell += b"/bin/busybox base64 $t; done\n/bin/busybox poweroff -f\n"
    entries = [cpio.directory("bin"), cpio.regular("bin/busybox", guest.busybox.read_bytes(), 0o755),
               cpio.symlink("bin/sh", "busybox"), cpio.regular("init", shell, 0o755),
               cpio.directory("dev"), cpio.character_device("dev/console", 5, 1)]  # fmt: skip
    (tmp_path / "plain").write_bytes(cpio.archive(entries))
    plain = subprocess.run(
        ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", *line.split(), "-bios", str(firmware.image),
         "-kernel", str(guest.kernel), "-initrd", str(tmp_path / "plain"),
         "-append", "console=ttyS0 quiet no_timer_check panic=-1",
         "-display", "none", "-serial", "stdio", "-no-reboot"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250, check=True,
    )  # fmt: skip
    for name in ("DSDT", "MCFG", "APIC", "WAET"):
        _, _, rest = plain.stdout.replace("\r", "").partition(f"== {name}\n")
        lines = itertools.takewhile(lambda each: re.fullmatch(r"[A-Za-z0-9+/]+=*", each), rest.splitlines())
        theirs = base64.b64decode("".join(lines))
        # Firmware sets the checksum, which is 0 in QEMU's file; two bytes more of the DSDT follow from where
        # it has put the BARs of QEMU's own devices.
        assert len(theirs) == len(tables[name]), name
        differ = [
            at for at, (one, other) in enumerate(zip(theirs, tables[name], strict=True)) if one != other
        ]
        assert set(differ) <= {9} or (name == "DSDT" and len(differ) <= 3), (name, differ)
