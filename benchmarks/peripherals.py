"""What disks and networks do in a TD, against a plain VM with the same kernel and initrd on the same QEMU.

Run as ``python -m benchmarks.peripherals``; ``--pairs N`` for more than three, ``--json`` for programs. The
exit status is 1 if the promise of issue 13 is broken: sequential reading of a disk, and a network's
throughput, at least half of the plain VM's, the median of pairs that take turns.

The disk is a raw file in the page cache, and the guest's cache is emptied first. Both networks are ``passt``,
with a program on the host that sends, or takes, as fast as it can. Seconds are the guest's own.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.plain_vm import plain_vm
from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED, Guest
from swtdx.guests.initramfs import Exec
from swtdx.guests.modules import PERIPHERALS
from swtdx.guests.peripherals import peripheral_files

PROMISED = 0.5
PAIRS = 3
MEMORY_MIB = 512
DISK_MIB = 256
NET_MIB = 64
PATIENCE = 300
#: What is measured: its name, what the guest does, and how many MiB that moves.
DISK = (
    ("disk, sequential read", f"dd if=/dev/vda of=/dev/null bs=1M count={DISK_MIB}", DISK_MIB),
    (
        "disk, read past the cache",
        f"dd if=/dev/vda of=/dev/null bs=1M count={DISK_MIB} iflag=direct",
        DISK_MIB,
    ),
    ("disk, sequential write", f"dd if=/dev/zero of=/dev/vda bs=1M count={DISK_MIB} conv=fsync", DISK_MIB),
    ("disk, 4 KiB reads one by one", "dd if=/dev/vda of=/dev/null bs=4k count=5120 iflag=direct", 20),
)
NET = (
    ("network, receiving", "wget -q -O /dev/null http://10.0.2.2:{port}/", NET_MIB),
    ("network, sending", "wget -q -O /dev/null --post-file=/tmp/text http://10.0.2.2:{port}/", NET_MIB),
)
PROMISES = ("disk, sequential read", "network, receiving", "network, sending")
_CLOCK = r"""
measure() {
    echo 3 >/proc/sys/vm/drop_caches
    read start rest </proc/uptime
    eval "$2" >/dev/null 2>&1 || return
    read end rest </proc/uptime
    echo "$1 $start $end"
}
"""


def script(jobs: list[tuple[str, str, int]]) -> str:
    """A command that does ``jobs`` and prints their numbers and times."""
    text = f"yes | head -c {NET_MIB << 20} >/tmp/text\n"
    return _CLOCK + text + "".join(f"measure {n} '{what}'\n" for n, (_, what, _) in enumerate(jobs))


def rates(output: str, jobs: list[tuple[str, str, int]]) -> dict[str, float]:
    """MiB a second of each job."""
    found = {}
    for line in output.splitlines():
        number, start, end = line.split()
        name, _, amount = jobs[int(number)]
        found[name] = amount / max(0.01, float(end) - float(start))
    if len(found) != len(jobs):
        raise SystemExit(f"the guest measured only {sorted(found)}")
    return found


class Server(http.server.BaseHTTPRequestHandler):
    """A program on the host that sends NET_MIB to whoever asks for it, and takes what comes."""

    def do_GET(self) -> None:
        """Send."""
        self.send_response(200)
        self.send_header("Content-Length", str(NET_MIB << 20))
        self.end_headers()
        data = bytes(1 << 20)
        for _ in range(NET_MIB):
            self.wfile.write(data)

    def do_POST(self) -> None:
        """Take."""
        left = int(self.headers["Content-Length"])
        if left != NET_MIB << 20:
            self.send_error(400)
            return
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20))) or left
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def server() -> Iterator[int]:
    """The program; its port."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield served.server_port
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


@contextmanager
def passt(folder: Path) -> Iterator[Path]:
    """A passt for a plain VM; its socket."""
    # As root it becomes another user, who must be able to make the socket.
    folder.chmod(0o777)
    path = folder / "passt"
    words = [
        "passt", "--foreground", "--quiet", "--one-off", "--ipv4-only", "--socket", str(path), "--address",
        "10.0.2.15", "--netmask", "255.255.255.0", "--gateway", "10.0.2.2",
    ]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not path.exists():
            if process.poll() is not None:
                raise SystemExit("passt does not work here")
        yield path
    finally:
        process.terminate()
        process.wait()
        path.unlink(missing_ok=True)


class Bench:
    """The guest and what both sides get."""

    def __init__(self, guest: Guest, folder: Path, jobs: list[tuple[str, str, int]]) -> None:
        self.guest = guest
        self.folder = folder
        self.jobs = jobs
        self.job = Exec(script(jobs))
        self.disk = folder / "disk"
        with self.disk.open("wb") as file:
            for _ in range(DISK_MIB):
                file.write(os.urandom(1 << 20))
        self.initrd = folder / "initrd"
        modules = (*PERIPHERALS["disk"], *PERIPHERALS["net"])
        self.initrd.write_bytes(guest.initramfs(self.job, peripheral_files(("net",), ()), modules))
        self.summary: dict[str, Any] = {}

    def plain(self) -> dict[str, float]:
        """The plain VM's rates."""
        with passt(self.folder) as path:
            words = [
                *plain_vm(self.guest, self.initrd, self.job, MEMORY_MIB),
                "-drive", f"file={self.disk},if=none,id=disk,format=raw",
                "-device", "virtio-blk-pci,drive=disk", "-netdev",
                f"stream,id=net,server=off,addr.type=unix,addr.path={path}", "-device",
                "virtio-net-pci,netdev=net",
            ]  # fmt: skip
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE)
        return rates(done.stdout, self.jobs)

    def td(self) -> dict[str, float]:
        """The TD's."""
        summary = self.folder / "summary.json"
        words = [
            sys.executable, "-m", "swtdx.cli.main", "run", "--guest", self.guest.version, "--memory",
            f"{MEMORY_MIB}M", "--disk", str(self.disk), "--net", "user", "--json", str(summary), "--exec",
            self.job.command,
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            raise SystemExit(f"swtdx run: {done.stderr}")
        self.summary = json.loads(summary.read_text())
        return rates(done.stdout, self.jobs)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("passt") is None:
        raise SystemExit("there is no passt (Debian, Ubuntu: package passt)")
    with tempfile.TemporaryDirectory() as name, server() as port:
        jobs = [*DISK, *((title, what.format(port=port), mib) for title, what, mib in NET)]
        bench = Bench(fetch_guest(TESTED), Path(name), jobs)
        pairs = [(bench.plain(), bench.td()) for _ in range(options.pairs)]
    ratios = {
        title: statistics.median(td[title] / plain[title] for plain, td in pairs) for title, _, _ in jobs
    }
    promises = [
        Promise(13, f"{title}, against a plain VM", ratios[title], PROMISED, "x") for title in PROMISES
    ]
    kept = all(promise.kept for promise in promises)
    exits = bench.summary.get("stats", {}).get("exits", bench.summary.get("exits", {}))
    if options.json:
        figures = [{"plain": plain, "td": td} for plain, td in pairs]
        promised = [promise.figures() for promise in promises]
        print(json.dumps({"promises": promised, "kept": kept, "pairs": figures, "exits": exits}, indent=2))
    else:
        for title, _, _ in jobs:
            plain, td = (statistics.median(pair[side][title] for pair in pairs) for side in (0, 1))
            print(f"{title:<30} {td:7.0f} MiB/s in a TD, {plain:7.0f} in a plain VM: {ratios[title]:.2f}")
        print("exits of the last TD:", ", ".join(f"{kind} {count}" for kind, count in exits.items()))
    return int(not kept)


if __name__ == "__main__":
    raise SystemExit(main())
