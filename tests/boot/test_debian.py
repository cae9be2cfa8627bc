"""A Debian as people have it: on a disk, started by firmware and systemd-boot, with systemd and sshd."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swtdx.attestation.quote import ParsedQuote
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.firmware import fetch_firmware
from swtdx.guests.guest import Guest
from tests.boot.debian import Debian, debian
from tests.boot.process import SWTDX, swtdx
from tests.boot.test_peripherals import free_port
from tests.fetching import cannot_fetch

pytestmark = [
    pytest.mark.boot,
    pytest.mark.qemu,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

#: Seconds for a system to come up on a busy computer.
PATIENCE = 400
QUOTE = r"""
modprobe tdx_guest; r=/sys/kernel/config/tsm/report/test; mkdir $r
head -c 64 /dev/zero >$r/inblob; base64 $r/outblob
"""


@pytest.fixture(scope="session")
def system(guest: Guest) -> Debian:
    return debian(guest.version)


@dataclass
class Running:
    """A TD with that system, and what came out of it."""

    system: Debian
    ssh_port: int
    process: subprocess.Popen[str]
    console: list[str] = field(default_factory=list)

    def ssh(self, command: str) -> str:
        """What ``command`` prints in the TD; it is tried until the system is up."""
        words = [
            "ssh", "-i", str(self.system.key), "-p", str(self.ssh_port), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60",
            # A TD that is replaced by another one says good-bye to nobody.
            "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=4", "root@127.0.0.1", command,
        ]  # fmt: skip
        end = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
            if done.returncode != 255:
                assert done.returncode == 0, (command, done.stderr)
                return done.stdout.strip()
            assert self.process.poll() is None, self.console[-20:]
            assert time.monotonic() < end, (done.stderr, self.console[-20:])
            time.sleep(1)


@pytest.fixture(scope="module")
def image(system: Debian, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk as qcow2: a copy to write to."""
    path = tmp_path_factory.mktemp("debian") / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", system.disk, path], check=True)
    return path


@pytest.fixture(scope="module")
def firmware() -> Path:
    try:
        return fetch_firmware("trixie", "ovmf").image
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


@pytest.fixture(scope="module")
def running(system: Debian, image: Path, firmware: Path) -> Iterator[Running]:
    port = free_port()
    process = subprocess.Popen(
        [
            *SWTDX, "run", "--firmware", str(firmware), "--disk", str(image), "--memory", "1G", "--restart",
            "--net", f"user,hostfwd=tcp::{port}-:22", "--vsock", f"7:{image.parent}/vsock",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    running = Running(system, port, process)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda stream: running.console.extend(stream), args=(process.stdout,))
    reader.start()
    try:
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def test_ssh_into_a_system_that_systemd_has_started(running: Running) -> None:
    assert running.ssh("cat /proc/1/comm; ls -d /sys/firmware/efi; findmnt -n -o SOURCE /").split("\n") == [
        "systemd", "/sys/firmware/efi", "/dev/vda2",
    ]  # fmt: skip


def test_a_large_file_has_the_right_hash(running: Running) -> None:
    assert running.ssh("sha256sum /blob | cut -d' ' -f1") == running.system.blob


def test_sockets(running: Running, image: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{image.parent}/vsock_99")
        listener.listen()
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(running.ssh("vsock connect 99")))
        client.start()
        listener.settimeout(PATIENCE)
        stream, _ = listener.accept()
        with stream, stream.makefile("rw") as lines:
            assert lines.readline() == "from the guest\n"
            lines.write("from the host\n")
            lines.flush()
            client.join()
        assert answers == ["from the host"]
    server = threading.Thread(target=lambda: running.ssh("vsock listen 1234"))
    server.start()
    end = time.monotonic() + PATIENCE
    answer = ""
    while not answer and time.monotonic() < end:
        # Until the guest listens the connection is refused, and so closed.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stream:
            stream.connect(f"{image.parent}/vsock")
            with stream.makefile("rw") as lines:
                lines.write("CONNECT 1234\nhello\n")
                lines.flush()
                answer = lines.readline() and lines.readline()
        time.sleep(0.2)
    server.join()
    assert answer == "HELLO\n"


def test_a_restart_finds_what_was_written(running: Running) -> None:
    before = running.ssh("echo kept >/written; sync; cat /proc/sys/kernel/random/boot_id")
    running.ssh("(sleep 1; reboot) >/dev/null 2>&1 &")
    end = time.monotonic() + PATIENCE
    time.sleep(2)
    while (now := running.ssh("cat /proc/sys/kernel/random/boot_id; cat /written")).startswith(before):
        assert time.monotonic() < end
        time.sleep(1)
    assert now.endswith("kept")
    assert any("it is a new TD now" in line for line in running.console)


def test_registers_are_what_executing_the_disk_predicts(running: Running, firmware: Path) -> None:
    """Firmware, partition table, boot loader, kernel, its command line and its initrd are all measured."""
    done = swtdx(
        "measure", "--firmware", str(firmware), "--disk", str(running.system.disk), "--memory", "1G",
        "--json",
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    predicted: dict[str, Any] = json.loads(done.stdout)
    assert predicted["entered"]
    kinds = [event["type"] for event in predicted["events"]]
    assert kinds.count("EV_EFI_BOOT_SERVICES_APPLICATION") == 2, "boot loader and kernel"
    assert "EV_EFI_GPT_EVENT" in kinds
    assert all(event["digest_is_of_data"] is not False for event in predicted["events"])
    quote = ParsedQuote(base64.b64decode(running.ssh(QUOTE))).body()
    assert quote["mrtd"].hex() == predicted["mrtd"]
    # RTMR0 has the ACPI tables and boot variables, which tell of the other devices, too.
    assert {n: quote[f"rtmr{n}"].hex() for n in (1, 2)} == {n: predicted[f"rtmr{n}"] for n in (1, 2)}


def test_it_switches_off(running: Running) -> None:
    running.ssh("(sleep 1; poweroff) >/dev/null 2>&1 &")
    assert running.process.wait(PATIENCE) == 0
    assert any("td login:" in line or "login:" in line for line in running.console)
