"""Hostile drivers: chains of descriptors of every wrong kind, for every virtio device and its host side.

``python -m tests.devices.fuzz_virtio --chains 100000`` is the long form of the test; it also prints how much
memory the process has grown by.  Nothing that a guest can write may raise, hang, or make the hypervisor grow.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path

from swtdx.devices.board import BoardConfig
from swtdx.devices.parts import Virtio
from swtdx.vmm.peripherals.attach import attach
from swtdx.vmm.peripherals.config import DiskConfig, NetConfig, Peripherals, ShareConfig, VsockConfig
from swtdx.vmm.peripherals.fuse.messages import IN_HEADER
from tests.devices.machines import RAM_SIZE, BoardMachine
from tests.devices.virtio_driver import ACCESS_PLATFORM, EVENT_IDX, VERSION_1, VirtioDriver

INDIRECT = 1 << 28
#: Where descriptors point to, mostly; and a part of memory that is private.
BUFFERS = 0x20_0000
PRIVATE = (0x60_0000, 0x61_0000)
QUEUE_SIZE = 16
#: Sizes and addresses that have been somebody's undoing.
LENGTHS = (
    0,
    1,
    2,
    7,
    8,
    12,
    16,
    17,
    40,
    44,
    511,
    512,
    513,
    4096,
    65536,
    1 << 20,
    1 << 24,
    1 << 31,
    (1 << 32) - 1,
)
ADDRESSES = (
    0,
    1,
    RAM_SIZE - 1,
    RAM_SIZE,
    PRIVATE[0],
    PRIVATE[1] - 8,
    1 << 32,
    1 << 47,
    (1 << 64) - 1,
    (1 << 64) - 4096,
)
CID = 7


class Hostile:
    """A board with every device, and what is done to it."""

    def __init__(self, folder: Path, numbers: random.Random) -> None:
        self.numbers = numbers
        disk = folder / "disk"
        disk.write_bytes(bytes(1 << 20))
        other = folder / "other"
        other.write_bytes(bytes(1 << 16))
        shared = [folder / name for name in ("fuse", "9p", "read-only")]
        for path in shared:
            path.mkdir()
            (path / "file").write_text("contents")
            (path / "folder").mkdir()
            (path / "out").symlink_to("/etc/passwd")
        self.attached = attach(
            Peripherals(
                disks=(DiskConfig(disk), DiskConfig(other, read_only=True)),
                nets=(NetConfig("loopback"), NetConfig("null")),
                shares=(
                    ShareConfig(shared[0], "fuse"),
                    ShareConfig(shared[1], "9p", protocol="9p"),
                    ShareConfig(shared[2], "ro", read_only=True),
                ),
                vsock=VsockConfig(CID, folder / "vsock"),
                rng=True,
            )
        )
        self.machine = BoardMachine(BoardConfig(more=self.attached.parts))
        self.machine.dma.private = PRIVATE
        parts = [part for part in self.machine.board.parts if isinstance(part, Virtio)]
        self.functions = [part._function for part in parts if part._function is not None]
        self.drivers: dict[int, VirtioDriver] = {}
        self.counts: Counter[str] = Counter()

    def close(self) -> None:
        self.attached.close()

    # ------------------------------------------------------------------ what devices may take for sense
    def _address(self) -> int:
        pick = self.numbers.random()
        if pick < 0.85:
            return BUFFERS + self.numbers.randrange(0, 0x10_0000)
        return self.numbers.choice(ADDRESSES) if pick < 0.97 else self.numbers.getrandbits(64)

    def _length(self) -> int:
        return self.numbers.choice(LENGTHS) if self.numbers.random() < 0.7 else self.numbers.getrandbits(12)

    def _request(self, device: int) -> bytes:
        """The beginning of a request that the device may take seriously."""
        numbers = self.numbers
        small = numbers.randrange(4)
        blob = numbers.randbytes(numbers.randrange(64))
        if device == 2:
            return (
                struct.pack("<IIQ", numbers.choice((0, 1, 4, 8, 11, 13, 99)), 0, numbers.randrange(3000))
                + blob
            )
        if device == 19:
            return struct.pack(
                "<QQIIIHHIII", CID, 2, small, numbers.randrange(4), numbers.choice((0, 9, 1 << 20)), 1,
                numbers.randrange(9), small, numbers.choice((0, 4096, 1 << 31)), numbers.getrandbits(8),
            ) + blob  # fmt: skip
        if device == 26:
            names = numbers.choice((b"file\0", b"folder\0", b"x\0y\0", b"..\0", b"a/b\0", b"out\0", b""))
            body = numbers.choice(
                (b"", struct.pack("<QQII", small, numbers.choice((0, 8, 1 << 63)), 64, 0), blob)
            )
            body += numbers.choice((b"", bytes(8), bytes(16))) + names
            op = numbers.randrange(52)
            return IN_HEADER.pack(40 + len(body), op, 1, small, 0, 0, 0, 0) + body
        if device == 9:
            name = numbers.choice((b"file", b"folder", b"new", b"..", b"a/b", b"out", b"\xff\0"))
            text = len(name).to_bytes(2, "little") + name
            kind = numbers.choice((*range(6, 34, 2), 40, 50, 52, 54, 70, 72, 74, 76, *range(100, 128, 2)))
            if kind == 100:
                body = struct.pack("<IH", 8192, 8) + b"9P2000.L"
            elif kind == 104:
                body = struct.pack("<II", small, 0xFFFF_FFFF) + text * 2 + bytes(4)
            elif kind == 110:
                count = numbers.randrange(3)
                body = struct.pack("<IIH", small, numbers.randrange(4), count) + text * count
            else:
                body = (
                    struct.pack("<I", small)
                    + numbers.choice((text, b"", blob))
                    + numbers.choice((bytes(16), blob))
                )
            return struct.pack("<IBH", 7 + len(body), kind, 1) + body
        return blob

    # ------------------------------------------------------------------ steps
    def start(self, index: int) -> VirtioDriver:
        function = self.functions[index]
        slot = next(at >> 3 for at, each in self.machine.board.pci.functions.items() if each is function)
        driver = VirtioDriver(self.machine, slot, 0xC000_0000 + 0x1_0000 * slot)
        extra = sum(feature for feature in (EVENT_IDX, INDIRECT) if self.numbers.random() < 0.7)
        offered = driver.offered() & ~(EVENT_IDX | INDIRECT)
        queues = len(function.common.queues)
        driver.start(
            (offered | VERSION_1 | ACCESS_PLATFORM | extra) & driver.offered(),
            queues=queues, size=min(QUEUE_SIZE, *(queue.max_size for queue in function.common.queues)),
        )  # fmt: skip
        return driver

    def chain(self) -> None:
        """One chain, on some queue of some device."""
        numbers, machine = self.numbers, self.machine
        index = numbers.randrange(len(self.functions))
        function = self.functions[index]
        driver = self.drivers.get(index)
        if driver is None or function.failure is not None or numbers.random() < 0.002:
            if function.failure is not None:
                assert driver is None or driver.status & 0x40
                self.counts["stopped"] += 1
            driver = self.drivers[index] = self.start(index)
        which = numbers.randrange(len(driver.rings))
        ring = driver.rings[which]
        at = BUFFERS + numbers.randrange(0, 0x10_0000)
        request = self._request(function.device.device_id)
        machine.mem_write(at, request)
        size = ring.size
        if numbers.random() < 0.7:
            # Of a form that the queue takes: how far the device's own code is reached.
            back = (BUFFERS + numbers.randrange(0, 0x8_0000), numbers.choice((1, 16, 64, 512, 4096, 8192)))
            pieces = [
                (at, max(1, len(request)), 0),
                (*back, 2),
                (self._address(), 1 + self._length() % 4096, 2),
            ]
            pieces = pieces[: numbers.randrange(1, 4)]
            if numbers.random() < 0.2:
                pieces = [(gpa, length, 2) for gpa, length, _ in pieces]
            if len(pieces) > size:
                return
            for place, (gpa, length, flags) in enumerate(pieces):
                ring.put_descriptor(place, gpa, length, flags | (place + 1 < len(pieces)), place + 1)
            head = 0
        else:
            for place in range(size):
                flags = numbers.choice((0, 1, 2, 3, 1, 3, 4, 5, 6, 7, numbers.getrandbits(16)))
                following = numbers.choice((place + 1, place, 0, size, numbers.getrandbits(16)))
                ring.put_descriptor(place, self._address(), self._length(), flags, following & 0xFFFF)
            head = numbers.choice((0, 1, size - 1, size, 0xFFFF)) if numbers.random() < 0.3 else 0
        ring.expose(head)
        if numbers.random() < 0.02:
            machine.mem_write(ring.avail + 2, struct.pack("<H", numbers.getrandbits(16)))
        driver.notify(which)
        if numbers.random() < 0.1:
            machine.board.poll()
        if numbers.random() < 0.01:
            offset = numbers.randrange(0, 0x1100)
            machine.mmio_write(
                driver.address(1) + offset, numbers.choice((1, 2, 4, 8)), numbers.getrandbits(32)
            )
        machine.msis.clear()
        machine.printed.clear()
        self.counts[f"device {function.device.device_id}"] += 1


def resident() -> int:
    """Bytes of memory that the process has in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def run(chains: int, seed: int) -> tuple[Counter[str], int]:
    """Serve ``chains`` hostile chains; what was served, and how many bytes the process grew by afterwards."""
    with tempfile.TemporaryDirectory() as name:
        hostile = Hostile(Path(name), random.Random(seed))
        try:
            for _ in range(chains // 4):
                hostile.chain()
            before = resident()
            for _ in range(chains - chains // 4):
                hostile.chain()
            grown = resident() - before
        finally:
            hostile.close()
    assert Path("/etc/passwd").stat().st_size > 0
    return hostile.counts, grown


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    counts, grown = run(options.chains, options.seed)
    print(f"{options.chains} chains in {time.monotonic() - started:.1f} s, {grown >> 10} KiB more memory")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")


if __name__ == "__main__":
    main()
