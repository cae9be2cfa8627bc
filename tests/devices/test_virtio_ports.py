"""A virtio console with channels beside its console, by the specification; QEMU takes the same tests."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from swtdx.devices.board import BoardConfig
from swtdx.devices.virtio.ports import PortConfig, VirtioPorts
from tests.devices.conftest import needs_qemu
from tests.devices.machines import BoardMachine, Machine, QtestMachine
from tests.devices.virtio_driver import ACCESS_PLATFORM, DEVICE, EVENT_IDX, VERSION_1, VirtioDriver

MULTIPORT = 1 << 1
CONTROL_RX, CONTROL_TX, CHANNEL_RX, CHANNEL_TX = 2, 3, 4, 5
READY, ADD, PORT_READY, CONSOLE, OPEN, NAME = 0, 1, 3, 4, 6, 7
BUFFERS = 0x20_0000
OUT = 0x28_0000
MAILBOXES = 0x2F_0000
NAME_TEXT = b"org.example.channel"


class Ours(BoardMachine):
    """Our board with one channel."""

    def __init__(self) -> None:
        self.channel = bytearray()
        super().__init__(BoardConfig(), channels=[PortConfig(NAME_TEXT.decode(), self.channel.extend)])

    @property
    def device(self) -> VirtioPorts:
        assert isinstance(self.board.console, VirtioPorts)
        return self.board.console

    def channel_input(self, data: bytes) -> None:
        self.device.send_to(NAME_TEXT.decode(), data)
        self.board.poll()

    def channel_end(self) -> None:
        self.device.end(NAME_TEXT.decode())
        self.board.poll()

    def channel_output(self, length: int) -> bytes:
        taken = bytes(self.channel[:length])
        del self.channel[:length]
        return taken


class Theirs(QtestMachine):
    """QEMU with one virtserialport."""

    def __init__(self) -> None:
        self.socket, far = socket.socketpair()
        self.socket.settimeout(10)
        os.set_inheritable(far.fileno(), True)
        super().__init__(
            "-chardev", f"socket,id=channel,fd={far.fileno()}",
            "-device", f"virtserialport,chardev=channel,nr=1,name={NAME_TEXT.decode()}",
            descriptors=(far.fileno(),),
        )  # fmt: skip
        far.close()

    def close(self) -> None:
        super().close()
        self.socket.close()

    def channel_input(self, data: bytes) -> None:
        self.socket.sendall(data)

    def channel_end(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def channel_output(self, length: int) -> bytes:
        taken = b""
        while len(taken) < length:
            taken += self.socket.recv(length - len(taken))
        return taken


@pytest.fixture(params=["ours", pytest.param("qemu", marks=pytest.mark.qemu)])
def machine(request: pytest.FixtureRequest) -> Iterator[Ours | Theirs]:
    if request.param == "ours":
        yield Ours()
        return
    needs_qemu()
    theirs = Theirs()
    yield theirs
    theirs.close()


class Driver(VirtioDriver):
    """A driver with buffers for control messages, and memory of what was said."""

    def __init__(self, machine: Machine, features: int) -> None:
        super().__init__(machine, machine.console_slot)
        self.start(features | MULTIPORT, queues=6, size=16, memory=0x1_0000)
        self.said: list[tuple[int, int, int, bytes]] = []
        self._buffers: dict[int, int] = {}
        for number in range(8):
            self.offer(CONTROL_RX, BUFFERS + 0x100 * number, 0x100)

    def offer(self, queue: int, gpa: int, length: int) -> None:
        self.where_of(queue, self.rings[queue].add([], [(gpa, length)]), gpa)
        self.notify(queue)

    def where_of(self, queue: int, head: int, gpa: int) -> None:
        self._buffers[queue << 16 | head] = gpa

    def tell(self, port: int, event: int, value: int) -> None:
        self.machine.mem_write(OUT, struct.pack("<IHH", port, event, value))
        self.rings[CONTROL_TX].add([(OUT, 8)], [])
        self.notify(CONTROL_TX)
        self.wait(CONTROL_TX)

    def wait(self, queue: int) -> bytes:
        """The next buffer that comes back on ``queue``."""
        for _ in range(500):
            element = self.rings[queue].take()
            if element is not None:
                head, length = element
                where = self._buffers.get(queue << 16 | head, OUT)
                return self.machine.mem_read(where, length) if length else b""
            time.sleep(0.005)
            self.machine.inp(0x80, 1)
        raise AssertionError(f"nothing came back on queue {queue}")

    def hear(self) -> tuple[int, int, int, bytes]:
        """The next control message: port, event, value, and what follows (a NUL at the end is dropped)."""
        message = self.wait(CONTROL_RX)
        return (*struct.unpack_from("<IHH", message), message[8:].rstrip(b"\0"))

    def bring_up(self) -> None:
        self.tell(0, READY, 1)
        assert [self.hear(), self.hear()] == [(0, ADD, 1, b""), (1, ADD, 1, b"")]
        self.tell(1, PORT_READY, 1)
        assert [self.hear(), self.hear()] == [(1, NAME, 1, NAME_TEXT), (1, OPEN, 1, b"")]


def test_all_queues_may_share_a_vector(machine: Ours | Theirs) -> None:
    """Linux does so where there are two vectors, for each one costs it a dozen accesses."""
    driver = Driver(machine, VERSION_1 | ACCESS_PLATFORM)
    driver.bring_up()
    driver.tell(1, OPEN, 1)
    driver.enable_msix(2, MAILBOXES)
    for index in range(6):
        driver.set_common(0x16, 2, index)
        driver.set_common(0x1A, 2, 1)
        assert driver.common(0x1A, 2) == 1
    for queue in (CONTROL_RX, CHANNEL_RX):
        machine.mem_write(MAILBOXES, bytes(8))
        if queue == CHANNEL_RX:
            driver.offer(CHANNEL_RX, BUFFERS + 0x2000, 0x1000)
            machine.channel_input(b"input")
        else:
            driver.tell(0, PORT_READY, 1)
        driver.wait(queue)
        assert struct.unpack("<II", machine.mem_read(MAILBOXES, 8)) == (0, 0x101)


def test_we_offer_no_more_vectors_than_that() -> None:
    driver = VirtioDriver(Ours(), 1)
    assert driver.pci.read(driver.msix_capability + 2, 2) & 0x7FF == 1


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_ports_are_announced_and_carry_bytes_both_ways(machine: Ours | Theirs, features: int) -> None:
    driver = Driver(machine, VERSION_1 | ACCESS_PLATFORM | features)
    driver.bring_up()
    driver.tell(1, OPEN, 1)
    text = bytes(range(256)) * 4
    machine.mem_write(OUT + 0x1000, text)
    for _ in range(40):  # around the ring, and further than one notification
        driver.rings[CHANNEL_TX].add([(OUT + 0x1000, len(text))], [])
        driver.notify(CHANNEL_TX)
        driver.wait(CHANNEL_TX)
        assert machine.channel_output(len(text)) == text
    driver.offer(CHANNEL_RX, BUFFERS + 0x2000, 0x1000)
    machine.channel_input(b"to the guest\0\n")
    assert driver.wait(CHANNEL_RX) == b"to the guest\0\n"


def test_the_console_is_port_0(machine: Ours | Theirs) -> None:
    driver = Driver(machine, VERSION_1 | ACCESS_PLATFORM)
    assert struct.unpack_from("<HHI", machine.mem_read(0, 8))  # memory is there
    assert machine.mmio_read(driver.address(DEVICE, 4), 4) >= 2  # max_nr_ports
    driver.bring_up()
    driver.tell(0, PORT_READY, 1)
    assert driver.hear()[:3] == (0, CONSOLE, 1)
    machine.mem_write(OUT + 0x1000, b"kernel message\n")
    driver.rings[1].add([(OUT + 0x1000, 15)], [])
    driver.notify(1)
    driver.wait(1)
    assert machine.console_output(15) == b"kernel message\n"


def test_input_waits_until_the_port_is_open_and_its_end_comes_last(machine: Ours | Theirs) -> None:
    driver = Driver(machine, VERSION_1 | ACCESS_PLATFORM)
    driver.bring_up()
    driver.offer(CHANNEL_RX, BUFFERS + 0x2000, 0x1000)
    machine.channel_input(b"all of it")
    time.sleep(0.05)
    assert driver.rings[CHANNEL_RX].take() is None, "Linux throws away what comes to a closed port"
    driver.tell(1, OPEN, 1)
    assert driver.wait(CHANNEL_RX) == b"all of it"
    machine.channel_end()
    assert driver.hear() == (1, OPEN, 0, b"")


def test_an_end_is_not_told_before_the_input_is_taken() -> None:
    machine = Ours()
    driver = Driver(machine, VERSION_1 | ACCESS_PLATFORM)
    driver.bring_up()
    driver.tell(1, OPEN, 1)
    machine.channel_input(b"x" * 10)
    machine.channel_end()
    assert driver.rings[CONTROL_RX].take() is None
    driver.offer(CHANNEL_RX, BUFFERS + 0x2000, 0x1000)
    machine.board.poll()
    assert driver.wait(CHANNEL_RX) == b"x" * 10
    assert driver.hear() == (1, OPEN, 0, b"")


def test_a_driver_that_talks_nonsense_is_ignored_and_cannot_bloat_us() -> None:
    machine = Ours()
    driver = Driver(machine, VERSION_1 | ACCESS_PLATFORM)
    for port, event, value in ((0, 99, 1), (7, PORT_READY, 1), (0xFFFFFFFF, OPEN, 1), (1, READY, 0)):
        driver.tell(port, event, value)
    for _ in range(2000):  # each asks for two answers, and there are eight buffers
        driver.tell(0, READY, 1)
    assert len(machine.device._to_say) <= 256
    assert machine.board.failures == {}


def test_without_multiport_there_is_the_console_alone() -> None:
    machine = Ours()
    driver = VirtioDriver(machine, machine.console_slot)
    driver.start(VERSION_1 | ACCESS_PLATFORM)
    machine.mem_write(OUT, b"hello")
    driver.rings[1].add([(OUT, 5)], [])
    driver.notify(1)
    assert machine.console_output(5) == b"hello"
    machine.channel_input(b"nobody asks for it")
    assert driver.rings[0].take() is None
