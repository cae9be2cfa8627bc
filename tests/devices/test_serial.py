"""The UART: as Linux's 8250 driver probes it, as its data sheet says, and as QEMU's answers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.devices.serial import Uart
from tests.devices.machines import BoardMachine, Machine, QtestMachine

BASE = 0x3F8
DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7


class Port:
    """Byte accesses to the UART of a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def get(self, register: int) -> int:
        return self._machine.inp(BASE + register, 1)

    def put(self, register: int, value: int) -> None:
        self._machine.outp(BASE + register, 1, value)


def identify(port: Port) -> str:
    """What Linux's 8250 driver would take the UART for; the steps of its autoconfiguration."""
    before = port.get(IER)
    port.put(IER, 0)
    low = port.get(IER) & 0x0F
    port.put(IER, 0x0F)
    high = port.get(IER) & 0x0F
    port.put(IER, before)
    if (low, high) != (0, 0x0F):
        return "none"
    modem = port.get(MCR)
    port.put(MCR, 0x1A)  # loopback with OUT2 and RTS: carrier and clear-to-send must show
    lines = port.get(MSR) & 0xF0
    port.put(MCR, modem)
    if lines != 0x90:
        return "none"
    port.put(LCR, 0xBF)  # where a 16650 or better has its enhanced features
    port.put(FCR, 0)
    port.put(LCR, 0)
    port.put(FCR, 1)
    kind = {0: "8250", 1: "unknown", 2: "16550", 3: "16550A"}[port.get(IIR) >> 6]
    if kind == "8250":
        saved = port.get(SCR)
        port.put(SCR, 0xA5)
        first = port.get(SCR)
        port.put(SCR, 0x5A)
        second = port.get(SCR)
        port.put(SCR, saved)
        return "16450" if (first, second) == (0xA5, 0x5A) else kind
    if kind == "16550A":
        port.put(LCR, 0x80)
        enhanced = port.get(2) & 0x1F  # EFR of a 16650, IIR of a 16550A
        port.put(LCR, 0)
        if enhanced == 0:
            return "16650"
        port.put(FCR, 1)
        narrow = port.get(IIR) >> 5
        port.put(FCR, 0x21)
        port.put(LCR, 0x80)
        port.put(FCR, 0x21)
        wide = port.get(IIR) >> 5
        port.put(LCR, 0)
        if (narrow, wide) == (6, 7):
            return "16750"
        kept = port.get(IER)
        port.put(IER, kept & ~0x40)
        if not port.get(IER) & 0x40:
            port.put(IER, kept | 0x40)
            if port.get(IER) & 0x40:
                return "XScale"
        port.put(IER, kept)
    return kind


def test_linux_takes_it_for_a_16550a(machine: Machine) -> None:
    assert identify(Port(machine)) == "16550A"


def test_an_absent_uart_is_seen_to_be_absent(board: BoardMachine) -> None:
    class Absent(Port):
        def get(self, register: int) -> int:
            return board.inp(0x2F8 + register, 1)

        def put(self, register: int, value: int) -> None:
            board.outp(0x2F8 + register, 1, value)

    assert identify(Absent(board)) == "none"


def test_output_goes_out_as_it_is_written(board: BoardMachine) -> None:
    port = Port(board)
    for byte in b"Linux version\n":
        assert port.get(LSR) & 0x60 == 0x60  # a polled console never waits
        port.put(DATA, byte)
    assert board.serial_printed == b"Linux version\n"
    board.outp(BASE, 2, 0x0141)  # a 16-bit OUT is two cycles on an 8-bit device: THR, then IER
    assert board.serial_printed.endswith(b"A")
    assert port.get(IER) == 1


def test_the_divisor_hides_data_and_interrupt_enable(board: BoardMachine) -> None:
    port = Port(board)
    port.put(LCR, 0x83)
    port.put(DATA, 0x34)
    port.put(IER, 0x12)
    assert (port.get(DATA), port.get(IER)) == (0x34, 0x12)
    port.put(LCR, 0x03)
    assert port.get(IER) == 0
    assert board.serial_printed == b""


class Line:
    """Records the interrupt line."""

    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.sent = bytearray()
        self.uart = Uart(self.sent.extend, self.levels.append)

    def get(self, register: int) -> int:
        return self.uart.read(register, 1)

    def put(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)


def test_transmitter_interrupt() -> None:
    line = Line()
    line.put(IER, 2)
    assert line.levels == [True]  # enabling it while the transmitter is empty raises it
    assert line.get(IIR) == 0x02
    assert line.levels == [True, False]  # reading the identification clears it
    line.put(DATA, 0x41)
    assert line.levels == [True, False, True]
    line.put(IER, 0)
    assert line.levels[-1] is False


def test_receiver_interrupt_and_trigger_level() -> None:
    line = Line()
    line.put(FCR, 0x41)  # FIFOs on, trigger at four
    line.put(IER, 1)
    line.uart.send(b"ab")
    assert line.get(IIR) == 0xCC  # too few for the trigger: the time-out reports them
    line.uart.send(b"cd")
    assert line.get(IIR) == 0xC4
    assert bytes(line.get(DATA) for _ in range(4)) == b"abcd"
    assert line.get(IIR) == 0xC1
    assert line.levels == [True, False]


def test_input_waits_for_room_and_none_is_lost() -> None:
    line = Line()
    line.put(FCR, 1)
    text = bytes(range(256)) * 4
    line.uart.send(text)
    read = bytearray()
    while line.get(LSR) & 1:
        read.append(line.get(DATA))
    assert read == text
    assert line.uart.pending == 0


def test_input_from_other_threads() -> None:
    line = Line()
    line.put(FCR, 1)

    def type_x() -> None:
        for _ in range(500):
            line.uart.send(b"x")

    threads = [threading.Thread(target=type_x) for _ in range(4)]
    for thread in threads:
        thread.start()
    count = 0
    while count < 2000 and (any(thread.is_alive() for thread in threads) or line.uart.pending):
        if line.get(LSR) & 1:
            line.get(DATA)
            count += 1
    for thread in threads:
        thread.join()
    assert count == 2000


@pytest.fixture(scope="module")
def frozen() -> Iterator[QtestMachine]:
    """QEMU with its clock stopped: its receiver's time-out, which ours has no time for, never comes."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    machine = QtestMachine(frozen=True)
    yield machine
    machine.close()


def _settle(port: Port) -> None:
    """Bring a UART from any state to one defined state."""
    for register, value in (
        (LCR, 0x80),
        (DATA, 1),
        (IER, 0),
        (LCR, 0),
        (MCR, 0),
        (IER, 0),
        (FCR, 7),
        (FCR, 0),
    ):
        port.put(register, value)
    port.put(SCR, 0)
    for register in (LSR, DATA, IIR, MSR, LSR, MSR):
        port.get(register)


#: Trigger levels other than one would need the time-out; modem interrupts follow the "changed" bits.
_LIMITS = {FCR: 0x0F, IER: 0xF7}
_write = st.tuples(st.integers(0, 7), st.integers(0, 255)).map(
    lambda pair: (pair[0], pair[1] & _LIMITS.get(pair[0], 0xFF))
)
_operation = st.one_of(_write, st.integers(0, 7))


@pytest.mark.qemu
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(_operation, max_size=60))
def test_same_answers_as_qemu(frozen: QtestMachine, operations: list[tuple[int, int] | int]) -> None:
    board = BoardMachine()
    uart = board.board.serial
    assert uart is not None
    ours, theirs = Port(board), Port(frozen)
    _settle(ours)
    _settle(theirs)
    divisor = False
    for number, operation in enumerate(operations):
        if isinstance(operation, int):
            # The receiver's content is undefined while it is empty (QEMU shows the byte before).
            undefined = operation == DATA and not uart.pending and not divisor
            mine, other = ours.get(operation), theirs.get(operation)
            if operation == MSR:
                # QEMU leaves out the "changed" bits in loopback, which the data sheet has.
                mine, other = mine & 0xF0, other & 0xF0
            assert undefined or mine == other, (
                f"operation {number}: register {operation} is {mine:#x}, QEMU says {other:#x}"
            )
        else:
            if operation[0] == LCR:
                divisor = bool(operation[1] & 0x80)
            ours.put(*operation)
            theirs.put(*operation)
