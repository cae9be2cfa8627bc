"""A TD with peripherals, by Linux's own drivers, through the command that users type."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import shutil
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from swtdx.guests.guest import Guest
from tests.boot.process import watched

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

MIB = 1 << 20
COMMAND = r"""
echo '=== disk'
sha256sum /dev/vda | cut -d' ' -f1
cat /sys/block/vda/serial; echo; cat /sys/block/vda/ro /sys/block/vdb/ro
dd if=/dev/vda of=/dev/vdb bs=64k count=160 conv=fsync 2>/dev/null && echo written
dd if=/dev/vda of=/dev/vdb bs=4k count=3 seek=3000 skip=70 conv=fsync 2>/dev/null && echo written
dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null || echo refused
dd if=/dev/vdb of=/dev/vdc bs=1M conv=fsync 2>/dev/null && echo written
dd if=/dev/vdc bs=1M count=12 2>/dev/null | sha256sum | cut -d' ' -f1
echo '=== share'
cd /mnt/stuff
cat file; cat out || echo 'not there'
mkdir -p a/b && echo 'from the guest' >a/b/new && ln a/b/new hard && mv a/b/new a/moved && rm -r a/b
ls -1 a; stat -c %h hard
dd if=/dev/vda of=big bs=1M count=5 2>/dev/null; sha256sum big | cut -d' ' -f1
mknod null c 1 3 || echo 'no devices'
touch /mnt/kept/x || echo 'read only'
echo '=== rng'
cat /sys/devices/virtual/misc/hw_random/rng_current; head -c 32 /dev/hwrng | wc -c
echo '=== net'
ifconfig eth0 | sed -n 's/.*inet addr:\([0-9.]*\).*/\1/p'
wget -q -O - http://10.0.2.2:PORT/
cat /sys/class/net/eth1/address
echo 'hello from the TD' >/root/index.html; httpd -p 80 -h /root
n=0; while [ ! -e /mnt/stuff/done ] && [ $n -lt 100 ]; do sleep 0.2; n=$((n + 1)); done; echo asked
echo '=== dmesg'
dmesg | grep -i 'virtio\|swiotlb\|I/O error'
"""


@dataclass
class Seen:
    """What the guest said, and what the host has of it."""

    folder: Path
    disk: bytes
    sections: dict[str, list[str]]
    answer: bytes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Greeting(http.server.BaseHTTPRequestHandler):
    """A server on the host that says one thing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello from the host\n")

    def log_message(self, *_: object) -> None:
        pass


def ask(port: int, done: Path, answers: list[bytes]) -> None:
    """Ask the guest's server until it answers."""
    end = time.monotonic() + 150
    while time.monotonic() < end and not answers:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as reply:
                answers.append(reply.read())
        except OSError:
            time.sleep(0.2)
    done.touch()


@pytest.fixture(scope="module")
def seen(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    if shutil.which("passt") is None:
        pytest.skip("no passt (Debian, Ubuntu: package passt)")
    folder = tmp_path_factory.mktemp("peripherals")
    data = random.Random(1).randbytes(24 * MIB)
    (folder / "disk").write_bytes(data)
    for name in ("written", "snapshot"):
        with (folder / name).open("wb") as file:
            file.truncate(12 * MIB)
    stuff, kept = folder / "stuff", folder / "kept"
    stuff.mkdir()
    kept.mkdir()
    (stuff / "file").write_text("from the host\n")
    (stuff / "out").symlink_to("/etc/hostname")
    (folder / "secret").touch()
    server = http.server.HTTPServer(("127.0.0.1", 0), Greeting)
    port = free_port()
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=server.serve_forever),
        threading.Thread(target=ask, args=(port, stuff / "done", answers)),
    ]
    for thread in threads:
        thread.start()
    try:
        done = watched(
            "run", "--guest", guest.version, "--rng",
            "--disk", f"{folder}/disk,serial=a-disk,readonly=on",
            "--disk", f"{folder}/written", "--disk", f"{folder}/snapshot,snapshot=on",
            "--share", str(stuff), "--share", f"{kept}:kept,ro",
            "--net", f"user,hostfwd=tcp::{port}-:80", "--net", "loopback",
            "--exec", COMMAND.replace("PORT", str(server.server_port)),
        )  # fmt: skip
    finally:
        server.shutdown()
        (stuff / "done").touch()
        answers.append(b"")
        for thread in threads:
            thread.join()
        server.server_close()
    assert done.returncode == 0, (done.stderr, done.lines[-20:])
    names = ("disk", "share", "rng", "net", "dmesg")
    return Seen(folder, data, {name: done.section(name) for name in names}, answers[0])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_disks(seen: Seen) -> None:
    first = seen.disk[: 10 * MIB]
    now = (first + bytes(2 * MIB))[: 3000 * 4096] + seen.disk[70 * 4096 : 73 * 4096]
    now += bytes(12 * MIB - len(now))
    assert seen.sections["disk"] == [
        digest(seen.disk), "a-disk", "1", "0", "written", "written", "refused", "written", digest(now),
    ]  # fmt: skip
    assert (seen.folder / "disk").read_bytes() == seen.disk
    assert (seen.folder / "written").read_bytes() == now
    assert not any((seen.folder / "snapshot").read_bytes())
    assert os.stat(seen.folder / "snapshot").st_blocks == 0


def test_shared_folders(seen: Seen) -> None:
    assert seen.sections["share"] == [
        "from the host", "not there", "moved", "2", digest(seen.disk[: 5 * MIB]), "no devices", "read only",
    ]  # fmt: skip
    stuff = seen.folder / "stuff"
    assert sorted(path.name for path in stuff.iterdir()) == ["a", "big", "done", "file", "hard", "out"]
    assert (stuff / "a" / "moved").read_text() == "from the guest\n"
    assert (stuff / "big").read_bytes() == seen.disk[: 5 * MIB]
    assert not list((seen.folder / "kept").iterdir())


def test_random_numbers(seen: Seen) -> None:
    source, count = seen.sections["rng"]
    assert source.startswith("virtio_rng")
    assert count == "32"


def test_networks(seen: Seen) -> None:
    assert seen.sections["net"] == [
        "10.0.2.15", "hello from the host", "52:54:00:12:34:57", "asked",
    ]  # fmt: skip
    assert seen.answer == b"hello from the TD\n"


def test_nothing_went_wrong(seen: Seen) -> None:
    assert any("software IO TLB" in line for line in seen.sections["dmesg"]) or seen.sections["dmesg"]
    # The write that was refused is the only error.
    errors = [line for line in seen.sections["dmesg"] if "error" in line.lower()]
    assert all("vda" in line for line in errors)
