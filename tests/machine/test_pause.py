"""A guest that waits by PAUSE leaves its core to others where they need it, and cannot tell."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from swtdx.arch import vmcs as f
from swtdx.machine.engine.qemu.cores import CORES
from swtdx.machine.engine.qemu.engine import QemuEngine
from swtdx.machine.engine.qemu.port import Port
from swtdx.machine.machine import Machine
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import Guest, build_machine

pytestmark = pytest.mark.qemu

#: As compilers write it, with prefixes that do nothing, and as REP NOP of 16 bits.
LOOP = """
        mov     ecx, 20
        mov     eax, 0x12345678
        stc
1:      pause
        .byte   0xF3, 0xF3, 0x90
        .byte   0x66, 0xF3, 0x90
        dec     ecx
        jnz     1b
        hlt
"""
PAUSES = 3 * 20
FOREVER = "1: pause\n jmp 1b"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with build_machine("qemu") as built:
        yield built


def crowd(machine: Machine, monkeypatch: pytest.MonkeyPatch, cores: int) -> Port:
    """Let two guests share ``cores`` cores; the first processor's port."""
    monkeypatch.setattr(CORES, "count", lambda: cores)
    monkeypatch.setattr(CORES, "scarce", lambda: False)
    engine = machine.engine
    assert isinstance(engine, QemuEngine)
    machine.tsc()
    port = engine._ports[0]
    port.guests = 2
    port.look()
    return port


def outcome(machine: Machine) -> tuple[list[int], int, int, int]:
    """Registers, flags, instruction pointer and number of runs at the loop's end."""
    guest = Guest(machine, LOOP)
    before = guest.lp.runs
    stopped = guest.run()
    assert stopped.reason == reason.HLT
    context = guest.vmcs.context
    return list(context.gpr), context.rflags, context.rip, guest.lp.runs - before


def test_it_stops_where_cores_are_short_and_sees_nothing_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd(machine, monkeypatch, cores=8)
    *alone, few = outcome(machine)
    crowd(machine, monkeypatch, cores=2)
    *among_others, many = outcome(machine)
    assert among_others == alone
    assert few < PAUSES <= many


def test_it_leaves_its_core_for_longer_each_time_but_not_for_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd(machine, monkeypatch, cores=2)
    waits: list[float] = []

    def wait(_self: QemuEngine, _lp: int, _woken: object, seconds: float | None) -> bool:
        assert seconds is not None
        waits.append(seconds)
        return False

    monkeypatch.setattr(QemuEngine, "wait", wait)
    guest = Guest(machine, LOOP)
    assert guest.run().reason == reason.HLT
    # The second half of the doubling is as long as all before: what a guest waits in vain is at most that.
    assert len(waits) == PAUSES
    assert waits == sorted(waits)
    assert waits[0] <= 50e-6
    assert 1e-3 <= waits[-1] <= 10e-3
    waits.clear()
    # After any other stop it is new.
    guest.skip()
    guest.vmcs.context.rip -= 1
    assert guest.run().reason == reason.HLT
    guest.write(0x1000, b"\xf3\x90\xf4")
    guest.vmcs.context.rip = 0x1000
    assert guest.run().reason == reason.HLT
    assert waits[0] <= 50e-6


def test_an_interrupt_ends_its_wait(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(machine, monkeypatch, cores=2)
    guest = Guest(machine, FOREVER)
    guest.vmcs.write(f.EXIT_CONTROLS, guest.vmcs.controls[f.EXIT_CONTROLS] | 1 << 15)
    lp = guest.lp
    lp.in_guest = True
    timer = threading.Timer(0.1, lp.interrupt, (0x61,))
    timer.start()
    stopped = guest.run()
    timer.join()
    lp.in_guest = False
    assert stopped.reason == reason.EXTERNAL_INTERRUPT
    assert stopped.intr_info & 0xFF == 0x61
    assert guest.vmcs.context.rip in (0x1000, 0x1002)
    # It has had time for some rounds, and slept in most of it.
    assert lp.runs < 1000
