"""The block device, next to QEMU's: the same driver and the same image, and the answers must be equal."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtdx.devices.board import BoardConfig
from swtdx.devices.parts import Virtio
from swtdx.devices.virtio.blk import VirtioBlk
from swtdx.vmm.peripherals.overlay import Overlay
from swtdx.vmm.peripherals.raw_image import RawImage
from tests.devices.machines import BoardMachine, QtestMachine
from tests.devices.virtio_driver import ACCESS_PLATFORM, DEVICE, EVENT_IDX, VERSION_1, Ring, VirtioDriver

SLOT = 4
SECTORS = 2048
INDIRECT = 1 << 28
SEG_MAX, READ_ONLY, BLK_SIZE, FLUSH, DISCARD, ZEROES = (1 << bit for bit in (2, 5, 6, 9, 13, 14))
HEAD, STATUS, DATA, TABLE = 0x20_0000, 0x20_1000, 0x21_0000, 0x20_2000
IN, OUT, DO_FLUSH, GET_ID, DO_DISCARD, DO_ZERO = 0, 1, 4, 8, 11, 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(7).randbytes(SECTORS * 512))
    return path


@pytest.fixture(params=["ours", "snapshot", pytest.param("qemu", marks=pytest.mark.qemu)])
def machine(request: pytest.FixtureRequest, image: Path) -> Iterator[BoardMachine | QtestMachine]:
    if request.param == "qemu":
        if shutil.which("qemu-system-x86_64") is None:
            pytest.skip("no QEMU")
        qtest = QtestMachine(
            "-drive", f"file={image},if=none,id=d,format=raw,discard=unmap",
            "-device",
            f"virtio-blk-pci,drive=d,addr={SLOT},disable-legacy=on,iommu_platform=on,serial=a-disk",
        )  # fmt: skip
        yield qtest
        qtest.close()
        return
    raw = RawImage(image, read_only=request.param == "snapshot")
    disk = Overlay(raw) if request.param == "snapshot" else raw
    more = (lambda: Virtio(lambda _wires: VirtioBlk(disk, b"a-disk"), SLOT),)
    yield BoardMachine(BoardConfig(more=more))
    disk.close()


class Disk:
    """A driver's requests, one at a time."""

    def __init__(self, machine: BoardMachine | QtestMachine, features: int = 0, size: int = 64) -> None:
        self.machine = machine
        self.driver = VirtioDriver(machine, SLOT)
        wanted = VERSION_1 | ACCESS_PLATFORM | FLUSH | DISCARD | ZEROES | features
        self.driver.start(wanted & self.driver.offered(), queues=1, size=size)
        self.indirect = bool(features & INDIRECT)

    @property
    def ring(self) -> Ring:
        return self.driver.rings[0]

    def ask(
        self,
        kind: int,
        sector: int = 0,
        readable: list[tuple[int, int]] | None = None,
        writable: list[tuple[int, int]] | None = None,
    ) -> tuple[int, int]:
        """(status, bytes written) of one request."""
        machine = self.machine
        machine.mem_write(HEAD, struct.pack("<IIQ", kind, 0, sector))
        machine.mem_write(STATUS, b"\xee")
        out, back = [(HEAD, 16), *(readable or [])], [*(writable or []), (STATUS, 1)]
        if self.indirect:
            pieces = [(gpa, length, 0) for gpa, length in out] + [(gpa, length, 2) for gpa, length in back]
            table = b"".join(
                struct.pack("<QIHH", gpa, length, flags | (at + 1 < len(pieces)), at + 1)
                for at, (gpa, length, flags) in enumerate(pieces)
            )
            machine.mem_write(TABLE, table)
            self.ring.put_descriptor(0, TABLE, len(table), 4, 0)
            self.ring._chains[0] = []
            self.ring.expose(0)
        else:
            self.ring.add(out, back)
        self.driver.notify(0)
        taken = self.ring.take()
        for _ in range(200_000):
            if taken is not None:
                break
            taken = self.ring.take()
        assert taken is not None
        return machine.mem_read(STATUS, 1)[0], taken[1]


@pytest.mark.parametrize("features", [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT])
def test_requests(machine: BoardMachine | QtestMachine, image: Path, features: int) -> None:
    before = image.read_bytes()
    disk = Disk(machine, features)
    # Reads, in pieces of any size.
    assert disk.ask(IN, 3, writable=[(DATA, 100), (DATA + 0x1000, 412), (DATA + 0x2000, 4096)]) == (OK, 4609)
    got = [machine.mem_read(DATA + at, size) for at, size in ((0, 100), (0x1000, 412), (0x2000, 4096))]
    assert b"".join(got) == before[3 * 512 : 12 * 512]
    # Writes, read back.
    machine.mem_write(DATA, b"\xa5" * 1024)
    assert disk.ask(OUT, 5, readable=[(DATA, 1000), (DATA + 1000, 24)])[0] == OK
    assert disk.ask(IN, 4, writable=[(DATA, 4 * 512)]) == (OK, 2049)
    there = machine.mem_read(DATA, 2048)
    assert there == before[4 * 512 : 5 * 512] + b"\xa5" * 1024 + before[7 * 512 : 8 * 512]
    assert disk.ask(DO_FLUSH)[0] == OK
    # Its name.
    machine.mem_write(DATA, b"\xcc" * 32)
    assert disk.ask(GET_ID, writable=[(DATA, 20)])[0] == OK
    assert machine.mem_read(DATA, 20).split(b"\0")[0] == b"a-disk"
    # Zeros.
    machine.mem_write(DATA, struct.pack("<QII", 100, 64, 0))
    assert disk.ask(DO_ZERO, readable=[(DATA, 16)])[0] == OK
    machine.mem_write(DATA, struct.pack("<QII", 200, 8, 1))
    assert disk.ask(DO_ZERO, readable=[(DATA, 16)])[0] == OK
    machine.mem_write(DATA, struct.pack("<QII", 300, 8, 0))
    assert disk.ask(DO_DISCARD, readable=[(DATA, 16)])[0] == OK
    for sector, count in ((100, 64), (200, 8)):
        assert disk.ask(IN, sector, writable=[(DATA, count * 512)])[0] == OK
        assert machine.mem_read(DATA, count * 512) == bytes(count * 512)
    assert disk.ask(IN, 99, writable=[(DATA, 512)])[0] == OK
    assert machine.mem_read(DATA, 512) == before[99 * 512 : 100 * 512]


def test_what_a_disk_refuses(machine: BoardMachine | QtestMachine) -> None:
    disk = Disk(machine)
    assert disk.ask(IN, SECTORS, writable=[(DATA, 512)])[0] == IO_ERROR
    assert disk.ask(IN, SECTORS - 1, writable=[(DATA, 1024)])[0] == IO_ERROR
    assert disk.ask(IN, 1 << 60, writable=[(DATA, 512)])[0] == IO_ERROR
    assert disk.ask(OUT, SECTORS, readable=[(DATA, 512)])[0] == IO_ERROR
    assert disk.ask(IN, 0, writable=[(DATA, 100)])[0] == IO_ERROR
    assert disk.ask(77)[0] == UNSUPPORTED
    machine.mem_write(DATA, struct.pack("<QII", SECTORS - 1, 8, 0))
    assert disk.ask(DO_ZERO, readable=[(DATA, 16)])[0] == IO_ERROR
    machine.mem_write(DATA, struct.pack("<QII", 0, 8, 2))
    assert disk.ask(DO_ZERO, readable=[(DATA, 16)])[0] == UNSUPPORTED
    assert disk.ask(IN, SECTORS - 1, writable=[(DATA, 512)])[0] == OK


def test_the_configuration(machine: BoardMachine | QtestMachine) -> None:
    driver = VirtioDriver(machine, SLOT)
    assert machine.mmio_read(driver.address(DEVICE), 4) == SECTORS
    assert machine.mmio_read(driver.address(DEVICE, 4), 4) == 0
    assert machine.mmio_read(driver.address(DEVICE, 12), 4) == 254
    assert machine.mmio_read(driver.address(DEVICE, 20), 4) == 512
    offered = driver.offered()
    for feature in (SEG_MAX, BLK_SIZE, FLUSH, DISCARD, ZEROES, INDIRECT, EVENT_IDX):
        assert offered & feature


def test_many_requests_with_one_notification(machine: BoardMachine | QtestMachine, image: Path) -> None:
    disk = Disk(machine, EVENT_IDX, size=256)
    data = image.read_bytes()
    for number in range(80):
        machine.mem_write(HEAD + 16 * number, struct.pack("<IIQ", IN, 0, 3 * number))
        disk.ring.add([(HEAD + 16 * number, 16)], [(DATA + 1024 * number, 1024), (STATUS + number, 1)])
    disk.driver.notify(0)
    taken = 0
    for _ in range(200_000):
        taken += disk.ring.take() is not None
        if taken == 80:
            break
    for number in range(80):
        assert machine.mem_read(DATA + 1024 * number, 1024) == data[1536 * number : 1536 * number + 1024]


def test_a_snapshot_leaves_the_image_as_it_was(image: Path) -> None:
    before = image.read_bytes()
    disk = Overlay(RawImage(image, read_only=True))
    numbers = random.Random(3)
    model = bytearray(before)
    for _ in range(300):
        size = numbers.choice((512, 4096, 70_000 // 512 * 512, 200_704))
        at = numbers.randrange(0, len(model) - size, 512)
        if numbers.random() < 0.3:
            disk.zero(at, size, unmap=numbers.random() < 0.5)
            model[at : at + size] = bytes(size)
        elif numbers.random() < 0.5:
            data = numbers.randbytes(size)
            cut = numbers.randrange(size)
            disk.write(at, [memoryview(data)[:cut], memoryview(data)[cut:]])
            model[at : at + size] = data
        back = bytearray(size + 512)
        start = numbers.randrange(0, len(model) - len(back), 512)
        cut = numbers.randrange(len(back))
        disk.read(start, [memoryview(back)[:cut], memoryview(back)[cut:]])
        assert back == model[start : start + len(back)]
    disk.close()
    assert image.read_bytes() == before != model


def test_a_hole_stays_one_and_becomes_one_again(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    disk = RawImage(path, read_only=False)
    disk.write(1 << 20, [memoryview(b"x" * 65536)])
    assert 0 < os.stat(path).st_blocks * 512 < 1 << 20
    disk.zero(1 << 20, 65536, unmap=True)
    assert os.stat(path).st_blocks * 512 < 65536
    disk.close()


def test_a_second_td_cannot_have_the_disk(image: Path) -> None:
    from swtdx.vmm.peripherals.errors import PeripheralError

    disk = RawImage(image, read_only=False)
    with pytest.raises(PeripheralError, match="in use by another TD"):
        RawImage(image, read_only=True)
    disk.close()
    first, second = RawImage(image, read_only=True), RawImage(image, read_only=True)
    first.close()
    second.close()
