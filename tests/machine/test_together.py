"""The software of several processors, side by side: on QEMU it shares a thread, with scripts each has one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import CODE, BareGuest, build_machine

PATIENCE = 20.0


@pytest.fixture(scope="module", params=[pytest.param("qemu", marks=pytest.mark.qemu), "scripted"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with build_machine(request.param) as built:
        built.start_engine()
        built.tsc()
        yield built


@pytest.fixture(scope="module")
def qemu() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def unexpected(error: BaseException) -> None:
    raise AssertionError(f"nothing was to fail: {error}")


def test_each_goes_on_while_the_other_waits(machine: Machine) -> None:
    first, second = machine.processors[:2]
    said: list[str] = []

    def sleeper() -> None:
        said.append("sleeps")
        first.halt()
        said.append("woken")
        first.acknowledge(33)
        second.interrupt(34)

    def waker() -> None:
        while "sleeps" not in said:
            second.pause(0.001)
        said.append("wakes")
        first.interrupt(33)
        second.halt()
        second.acknowledge(34)
        said.append("end")

    machine.together({0: sleeper, 1: waker}, unexpected)
    assert said == ["sleeps", "wakes", "woken", "end"]


def test_a_lock_is_waited_for_while_its_holder_waits(machine: Machine) -> None:
    lock = threading.Lock()
    order: list[int] = []

    def program(number: int) -> Callable[[], None]:
        processor = machine.processors[number]

        def run() -> None:
            for _ in range(3):
                processor.acquire(lock)
                order.append(number)
                processor.pause(0.002)
                order.append(number)
                lock.release()
                processor.pause(0.001)

        return run

    machine.together({0: program(0), 1: program(1)}, unexpected)
    assert len(order) == 12
    # Nobody came between another's two entries.
    assert all(order[n] == order[n + 1] for n in range(0, 12, 2))


def test_an_exception_makes_the_others_return_and_is_raised(machine: Machine) -> None:
    told: list[BaseException] = []
    ended = threading.Event()

    def failed(error: BaseException) -> None:
        told.append(error)
        machine.processors[1].interrupt(40)

    def fails() -> None:
        machine.processors[0].pause(0.002)
        raise ZeroDivisionError

    def waits() -> None:
        machine.processors[1].halt()
        machine.processors[1].acknowledge(40)
        ended.set()

    with pytest.raises(ZeroDivisionError):
        machine.together({0: fails, 1: waits}, failed)
    assert ended.is_set()
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_another_thread_wakes_a_processor_that_shares_one(machine: Machine) -> None:
    processor = machine.processors[1]
    timer = threading.Timer(0.05, lambda: processor.interrupt(50))

    def waits() -> None:
        timer.start()
        processor.halt()
        processor.acknowledge(50)

    started = time.monotonic()
    machine.together({1: waits}, unexpected)
    assert time.monotonic() - started < PATIENCE / 2


@pytest.mark.qemu
@pytest.mark.parametrize("who", ["a program on the same thread", "another thread"])
def test_a_guest_that_never_stops_is_stopped_for_a_flush_and_goes_on(qemu: Machine, who: str) -> None:
    guest = BareGuest(qemu, 0)
    guest.write(CODE, b"\xff\x05\x00\x20\x00\x00\xeb\xf8")  # inc dword [0x2000]; jmp to it
    count = [0]
    ended: list[int] = []

    def counted() -> int:
        return int.from_bytes(guest.read(0x2000, 4), "little")

    def flush(pause: Callable[[float], None]) -> None:
        while not guest.lp.spaces:
            pause(0.001)
        for _ in range(20):
            # However busy the computer is: it goes on before the next one.
            given_up = time.monotonic() + PATIENCE / 20
            while counted() == count[-1] and time.monotonic() < given_up:
                pause(0.002)
            count.append(counted())
            for space in tuple(guest.lp.spaces.values()):
                space.flush()
        guest.lp.interrupt(60)

    def run() -> None:
        guest.lp.in_guest = True
        ended.append(guest.run().reason)
        guest.lp.in_guest = False
        guest.lp.acknowledge(60)

    if who == "another thread":
        thread = threading.Thread(target=flush, args=(time.sleep,))
        thread.start()
        qemu.together({0: run}, unexpected)
        thread.join()
    else:
        qemu.together({0: run, 1: lambda: flush(qemu.processors[1].pause)}, unexpected)
    assert ended == [reason.EXTERNAL_INTERRUPT]
    # It ran on between the flushes.
    assert count[-1] > count[1] > 0
    assert count == sorted(count)
