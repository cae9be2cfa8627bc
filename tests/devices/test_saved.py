"""Devices that are saved go on as if nothing had been: seen by their answers alone, never by their fields.

A guest of random accesses lives on a board; the board is saved and put back into a new one of the same parts,
and then old and new get the same accesses, each with a copy of the guest's memory.
"""

from __future__ import annotations

import ast
import copy
import inspect
import pkgutil
import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

import swtdx.devices
from swtdx.arch.guest_map import GUEST_MAP, IOAPIC_GPA
from swtdx.devices.board import BoardConfig, BoardError
from swtdx.devices.fw_cfg import FwCfg
from swtdx.devices.ioapic import IoApic
from swtdx.devices.msi import MsiRouter
from swtdx.devices.pci.function import PciFunction
from swtdx.devices.pci.host import ConfigPorts
from swtdx.devices.pci.msix import MsixTable
from swtdx.devices.power import PowerBlock
from swtdx.devices.rtc import CmosRtc
from swtdx.devices.serial import Uart
from swtdx.devices.virtio.common import CommonConfig
from swtdx.devices.virtio.port import PortStream
from swtdx.devices.virtio.ports import PortConfig, VirtioPorts
from swtdx.devices.virtio.queue import Virtqueue
from swtdx.machine.saved import Saved as MachineSaved
from swtdx.machine.snapshot import SnapshotError
from tests.devices.machines import BoardMachine
from tests.devices.sections import carry
from tests.devices.virtio_driver import ACCESS_PLATFORM, EVENT_IDX, VERSION_1, VirtioDriver

CONFIG = BoardConfig(chipset=True, rtc_driver=True, ecam=GUEST_MAP.ecam, ioapic=True)
BAR = GUEST_MAP.pci_window_end - 0x2000
#: Where random accesses go: base, span, sizes, whether they are ports.
PLACES = [
    (0x70, 2, (1,), True), (0x3F8, 8, (1,), True), (0x510, 12, (1, 2, 4), True), (0x600, 4, (1, 2, 4), True),
    (0x604, 1, (1,), True), (0xCF8, 8, (1, 2, 4), True), (IOAPIC_GPA, 0x14, (4,), False),
    (GUEST_MAP.ecam + 0x8000, 0x100, (1, 2, 4), False), (GUEST_MAP.ecam, 0x100, (1, 2, 4), False),
    (BAR, 0x38, (1, 2, 4), False), (BAR + 0x1000, 0x40, (4,), False), (BAR + 0x100, 1, (1,), False),
]  # fmt: skip


def make(seed: int, channels: bool) -> BoardMachine:
    """A machine whose memory is filled by ``seed``."""
    ports = [PortConfig("one", lambda _data: None)] if channels else []
    machine = BoardMachine(CONFIG, ports)
    assert machine.board.fw_cfg is not None
    machine.board.fw_cfg.add_file("etc/test", bytes(range(200)))
    machine.ram[:0x4000] = random.Random(seed).randbytes(0x4000)
    return machine


def live(machine: BoardMachine, numbers: random.Random, steps: int) -> list[int]:
    """Random accesses; what the reads gave."""
    answers = []
    machine.board.pci.functions[8].write_config(4, 2, 6)  # answering, a bus master
    for _ in range(steps):
        base, span, sizes, port = numbers.choice(PLACES)
        size = numbers.choice(sizes)
        at = base + numbers.randrange(0, span, size)
        value = numbers.choice((numbers.getrandbits(8 * size), numbers.randrange(16)))
        kind = numbers.random()
        if kind < 0.05:
            assert machine.board.serial is not None
            assert machine.board.console is not None
            numbers.choice((machine.board.serial, machine.board.console)).send(b"typed" * 9)
        elif kind < 0.1:
            machine.outp(0x510, 2, numbers.choice((0, 1, 0x19, 0x20)))
            answers.append(machine.inp(0x511, 1))
        elif kind < 0.15:
            answers.append(machine.inp(0x511, 1))
        elif kind < 0.5:
            machine.outp(at, size, value) if port else machine.mmio_write(at, size, value)
        else:
            answers.append(machine.inp(at, size) if port else machine.mmio_read(at, size))
    return answers


def twin(machine: BoardMachine, channels: bool) -> BoardMachine:
    """Another machine with a copy of the memory, whose board is loaded from this one's state."""
    other = make(0, channels)
    other.ram[:] = machine.ram
    carry(machine.board, other.board)
    other.power, other.msis = list(machine.power), list(machine.msis)
    other.printed[:], other.serial_printed[:] = machine.printed, machine.serial_printed
    return other


def differs(seed: int, channels: bool) -> bool:
    """Whether a saved and loaded board can be told from the one that was saved."""
    machine = make(seed, channels)
    live(machine, random.Random(seed), 300)
    other = twin(machine, channels)
    seen = []
    for each in (machine, other):
        each.board.poll()
        answers = live(each, random.Random(seed + 1), 600)
        seen.append((answers, each.ram, each.msis, each.printed, each.serial_printed, each.power))
    return seen[0] != seen[1]


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_a_board_goes_on_where_it_was(seed: int, channels: bool) -> None:
    assert not differs(seed, channels)


def forgets(kind: type[Any]) -> Callable[..., None]:
    """``load_state`` of ``kind``, but what it read is lost again."""
    real = kind.load_state

    def load_state(self: Any, section: Any) -> None:
        before = {name: value for name, value in vars(self).items() if not name.startswith("_on")}
        copies = {
            name: copy.copy(value) if isinstance(value, bytearray | list | dict) else value
            for name, value in before.items()
        }
        real(self, section)
        vars(self).update(copies)

    return load_state


@pytest.mark.parametrize(
    "kind", [Uart, CmosRtc, PowerBlock, ConfigPorts, IoApic, FwCfg, MsixTable, CommonConfig, PciFunction]
)
def test_a_device_that_forgets_is_seen(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: for each device, if only that device forgets."""
    monkeypatch.setattr(kind, "load_state", forgets(kind))
    assert any(differs(seed, channels=False) for seed in range(25))


# ---------------------------------------------------------------------- virtio, with a driver that works
BUFFERS, OUT, MAILBOXES = 0x20_0000, 0x28_0000, 0x2F_0000


class Moving(BoardMachine):
    """A machine whose board is saved, and put back into a new one, whenever one wants."""

    moving = True

    def move(self) -> None:
        if self.moving:
            board = self.new_board()
            carry(self.board, board)
            self.board = board


def converse(machine: Moving, features: int, multiport: bool) -> list[object]:
    """A driver's work, interrupted by moves; everything that it and the host saw."""
    seen: list[object] = []
    driver = VirtioDriver(machine, 1)
    driver.status = 0
    driver.accept(features | VERSION_1 | ACCESS_PLATFORM | multiport << 1)
    machine.move()
    driver.start(features | VERSION_1 | ACCESS_PLATFORM | multiport << 1, queues=6 if multiport else 2)
    driver.enable_msix(2, MAILBOXES)
    for index in range(6 if multiport else 2):
        driver.set_common(0x16, 2, index)
        driver.set_common(0x1A, 2, 1)
    if multiport:
        for number in range(4):
            driver.rings[2].add([], [(BUFFERS + 0x1000 + 64 * number, 64)])
        for message in ((0, 0, 1), (1, 3, 1), (0, 3, 1)):
            machine.move()
            head = message[0].to_bytes(4, "little") + b"".join(n.to_bytes(2, "little") for n in message[1:])
            machine.mem_write(OUT, head)
            driver.rings[3].add([(OUT, 8)], [])
            driver.notify(3)
            seen.append([driver.rings[2].take() for _ in range(3)])
        # More to say than there were buffers for: it waits, over the move.
        machine.move()
        for number in range(4):
            driver.rings[2].add([], [(BUFFERS + 0x2000 + 64 * number, 64)])
        driver.notify(2)
        seen.append([driver.rings[2].take() for _ in range(3)])
    for round_ in range(6):
        machine.board.console.send(b"in %d" % round_)  # type: ignore[union-attr]
        machine.move()
        machine.board.poll()
        driver.rings[0].add([], [(BUFFERS + 64 * round_, 64)])
        driver.notify(0)
        seen.append(driver.rings[0].take())
        machine.mem_write(OUT, b"out %d" % round_)
        driver.rings[1].add([(OUT, 5)], [])
        machine.move()
        driver.notify(1)
        seen.append((driver.rings[1].take(), bytes(machine.printed)))
        machine.move()
        machine.board.poll()
    driver.rings[1].add([(0xFFFF_FFF0, 64)], [])  # nowhere: the device stops, and says so after a move
    driver.notify(1)
    machine.move()
    seen += [driver.status, machine.board.failures, machine.mem_read(BUFFERS, 0x4000), machine.msis]
    driver.status = 0
    driver.start(features | VERSION_1 | ACCESS_PLATFORM)
    return [*seen, driver.status, machine.board.failures, machine.wakes > 0]


@pytest.fixture(params=[False, True], ids=["one port", "channels"])
def multiport(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def both(multiport: bool, features: int) -> tuple[list[object], list[object]]:
    channels = [PortConfig("one", lambda _data: None)] if multiport else []
    still, moving = Moving(BoardConfig(), channels), Moving(BoardConfig(), channels)
    still.moving = False
    return converse(still, features, multiport), converse(moving, features, multiport)


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_a_driver_does_not_notice_a_move(multiport: bool, features: int) -> None:
    stayed, moved = both(multiport, features)
    assert stayed == moved
    assert b"out 5" in str(stayed).encode()


@pytest.mark.parametrize("kind", [Virtqueue, CommonConfig, MsixTable, PortStream, VirtioPorts])
def test_a_driver_notices_a_part_that_forgets(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "load_state", forgets(kind))
    try:
        stayed, moved = both(True, EVENT_IDX)
    except (AssertionError, KeyError, IndexError):
        return
    assert stayed != moved


# ---------------------------------------------------------------------- what is not on a board, and errors
def test_dropped_messages_are_counted_on() -> None:
    router, other = MsiRouter({}), MsiRouter({})
    router.deliver(0xFEE0_0000, 0x41)
    carry(router, other)
    other.deliver(0xFEE0_0000, 0x41)
    assert other.dropped == 2


def test_where_the_host_bridge_put_ecam() -> None:
    machine = BoardMachine(BoardConfig(ecam=GUEST_MAP.ecam))
    machine.board.pci.functions[0].write_config(0x60, 4, 0xC000_0001)
    other = BoardMachine(BoardConfig(ecam=GUEST_MAP.ecam))
    carry(machine.board, other.board)
    assert other.mmio_read(0xC000_0000, 4) == 0x29C0_8086
    assert other.mmio_read(GUEST_MAP.ecam, 4) == 0xFFFF_FFFF


def test_a_reset_bit_that_is_set_does_not_rise_again() -> None:
    machine, other = BoardMachine(), BoardMachine()
    machine.outp(0xCF9, 1, 4)
    carry(machine.board, other.board)
    other.outp(0xCF9, 1, 4)
    assert (machine.power, other.power) == (["restart"], [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BoardConfig(ioapic=True), "other devices"),
        (BoardConfig(serial=False, ioapic=True), "the board had .* where this has"),
    ],
)
def test_another_board_is_refused_by_name(config: BoardConfig, words: str) -> None:
    with pytest.raises(SnapshotError, match=words):
        carry(BoardMachine().board, BoardMachine(config).board)


def test_other_channels_are_refused() -> None:
    with pytest.raises(SnapshotError, match="a port 'one', and here it is 'two'"):
        carry(
            BoardMachine(channels=[PortConfig("one", print)]).board,
            BoardMachine(channels=[PortConfig("two", print)]).board,
        )


class Forgetful:
    """A device of the user's own."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


def test_a_device_that_does_not_say_how_it_is_saved_is_named() -> None:
    machine = BoardMachine()
    machine.board.ports.register(0x900, 4, Forgetful(), name="my device")
    with pytest.raises(BoardError, match="my device at ports 0x900: Forgetful does not say how it is saved"):
        carry(machine.board, BoardMachine().board)


def test_they_are_what_a_snapshot_of_the_machine_asks_for() -> None:
    """mypy compares the methods, too."""
    owners: list[MachineSaved] = [Uart(print), CmosRtc(lambda: 0.0), IoApic(), BoardMachine().board]
    assert all(hasattr(owner, "load_state") for owner in owners)


# ---------------------------------------------------------------------- a new device cannot forget
#: Classes that change but are not saved, and attributes that are not, each with the reason.
NOT_SAVED = {
    "PortSpace": "its claims are made when the board is",
    "_Space": "its claims are made when the board is",
    "PciHost": "made with the board, and out of the functions' configuration spaces",
    "Board._top": "the board is composed before it runs",
    "Board.parts": "the board is composed before it runs",
    "BufferDma": "the guest's memory is not the board's",
    "VirtioPci.config": "PciFunction saves it",
    "Virtqueue.enabled": "load_state enables the queue, which checks it",
    "Virtio": "a part: its device is",
    "Power": "a part: its device is, and the alarm is set again",
    "InterruptController": "a part: its device is",
    "_Strings": "of a table that is made when the board is",
    "VirtioBlk._transport": "attach gives it",
    "VirtioBlk._queue": "attach gives it",
    "VirtioRng": "it has no state of its own, and attach gives it the driver's queue",
    "VirtioNet._transport": "attach gives it",
    "VirtioNet._receive": "attach gives it",
    "VirtioNet._transmit": "attach gives it",
    "VirtioNet._pending": "a frame on its way, which networks lose",
    "VirtioVsock._transport": "attach gives it",
    "VirtioVsock._queues": "attach gives it",
    "VirtioVsock._lost": "connections end with a snapshot, which is told",
    "Virtio9p._transport": "attach gives it",
    "Virtio9p._queue": "attach gives it",
    "VirtioFs._transport": "attach gives it",
    "VirtioFs._queues": "attach gives it",
    "PowerBlock._level": "follows from status and enable",
    "Console": "a part: its device is",
    "FirmwareConfig": "a part: its device is",
    "PciRoot": "a part: the bus is made with the board",
    "PciFunction._hooks": "made with the device",
    "PciFunction._bars": "made with the device",
    "PciFunction._writable": "made with the device",
    "PciFunction._next_capability": "made with the device",
    "PciFunction._last_link": "made with the device",
    "MsixTable._capability": "made with the device",
    "VirtioPci._window": "made with the device",
    "VirtioConsole._transport": "attach puts it back",
    "VirtioPorts._transport": "attach puts it back",
    "VirtioPorts._queues": "attach puts it back",
    "PortStream._transport": "attach puts it back",
}
_CHANGING = {"append", "extend", "clear", "pop", "popleft", "insert", "update", "setdefault", "add"}
_WITHIN = {"__init__", "load_state", "attach"}


def _attribute(node: ast.AST) -> str | None:
    """``x`` of ``self.x``, ``self.x[...]``."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def changed(body: ast.ClassDef) -> set[str]:
    """Attributes that methods other than the constructor assign, or call a changing method of."""
    found: set[str | None] = set()
    for method in body.body:
        if not isinstance(method, ast.FunctionDef) or method.name in _WITHIN:
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.Assign):
                targets = [
                    each
                    for target in node.targets
                    for each in (target.elts if isinstance(target, ast.Tuple) else [target])
                ]
                found.update(map(_attribute, targets))
            elif isinstance(node, ast.AugAssign | ast.AnnAssign):
                found.add(_attribute(node.target))
            elif isinstance(node, ast.Delete):
                found.update(map(_attribute, node.targets))
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in _CHANGING
            ):
                found.add(_attribute(node.func.value))
    return {name for name in found if name is not None}


def forgotten(source: str) -> set[str]:
    """Classes that change without ``save_state``, and attributes that change and are in neither method."""
    found = set()
    for body in ast.walk(ast.parse(source)):
        if not isinstance(body, ast.ClassDef):
            continue
        names = changed(body)
        methods = {method.name: method for method in body.body if isinstance(method, ast.FunctionDef)}
        if not names:
            continue
        if "save_state" not in methods or "load_state" not in methods:
            found.add(body.name)
            continue
        for name in names:
            for method in ("save_state", "load_state"):
                if f"self.{name}" not in ast.unparse(methods[method]):
                    found.add(f"{body.name}.{name}")
    return found


def test_every_class_that_changes_says_how_it_is_saved() -> None:
    found = set()
    for module in pkgutil.walk_packages(swtdx.devices.__path__, "swtdx.devices."):
        found |= forgotten(inspect.getsource(import_module(module.name)))
    assert found == set(NOT_SAVED)


def test_a_new_device_that_forgets_is_found() -> None:
    assert forgotten(inspect.getsource(Forgetful)) == {"Forgetful"}
    source = inspect.getsource(inspect.getmodule(IoApic) or IoApic)
    assert forgotten(source) == set()
    assert forgotten(source.replace("out.u32(self._id)", "pass")) == {"IoApic._id"}
