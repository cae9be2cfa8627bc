"""SEAM code and microcode work on frames; software on other processors cannot get in between.

Where a test forces an interleaving it lets another thread try at that very point, and gives it time.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swtdx.arch import vmcs as f
from swtdx.arch.control_structs import TDVPS
from swtdx.lab.bench import Bench
from swtdx.lab.victim import KEEPERS, RAM
from swtdx.machine.engine.scripted import Pause
from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM
from swtdx.machine.vmx import apicv, unit
from swtdx.machine.vmx import exit as reason
from swtdx.module import keyhole
from swtdx.module.host import enter
from swtdx.module.vcpu import Vcpu
from tests.machine.guests import HKID, VAPIC, BareGuest, build_machine

PAGE = 4096


def twice(memory: Any, pa: int, data: bytes) -> Callable[[], None]:
    """Two stores: the first takes a page from the TD, the second makes it the hypervisor's."""

    def store() -> None:
        memory.write(pa, data)
        memory.write(pa, data)

    return store


class Elsewhere:
    """Something that another processor does; ``waited`` says that it could not do it at once."""

    def __init__(self) -> None:
        self.waited: bool | None = None
        self._thread: threading.Thread | None = None

    def does(self, action: Callable[[], object]) -> None:
        """Start it, and give it time."""
        self._thread = threading.Thread(target=action)
        self._thread.start()
        self._thread.join(0.2)
        self.waited = self._thread.is_alive()

    def ends(self) -> None:
        """It gets through in the end."""
        assert self._thread is not None
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


def test_registers_are_saved_where_no_store_of_the_hypervisor_comes_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, tdvpr, other = bench.platform.host.memory, bench.victim.tdvpr, Elsewhere()
    real = Vcpu.advance

    def advance(vcpu: Vcpu) -> None:
        real(vcpu)
        other.does(twice(host, tdvpr, bytes(PAGE)))

    monkeypatch.setattr(Vcpu, "advance", advance)
    assert bench.victim.enter() == reason.TDCALL
    assert other.waited
    other.ends()
    assert not any(word.to_bytes(8, "little") in host.read(tdvpr, PAGE) for word in bench.victim.secret)


def test_registers_are_loaded_where_no_store_of_the_hypervisor_comes_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, tdvpr, other = bench.platform.host.memory, bench.victim.tdvpr, Elsewhere()
    chosen = bytearray(PAGE)
    struct.pack_into("<16Q", chosen, TDVPS.gpr.offset, *(0xBAD << 32 | number for number in range(16)))
    real = enter._load_registers
    entered: list[list[int]] = []

    def load(call: Any, vcpu: Vcpu, last_exit: int, handle: int) -> None:
        monkeypatch.undo()
        other.does(twice(host, tdvpr, bytes(chosen)))
        real(call, vcpu, last_exit, handle)
        entered.append([vcpu.gpr[number] for number in KEEPERS])

    monkeypatch.setattr(enter, "_load_registers", load)
    # The store goes through as soon as the guest runs: the module then finds the page broken.
    bench.victim.enter()
    assert other.waited
    other.ends()
    assert entered == [list(bench.victim.secret[: len(KEEPERS)])]
    assert bench.victim.damage == []


def test_a_page_is_moved_where_no_store_of_the_hypervisor_comes_between(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, other = bench.platform.host.memory, Elsewhere()
    old, new = bench.victim.hpa(RAM), bench.page()
    bench.must("TDH.MEM.RANGE.BLOCK", rcx=RAM, rdx=bench.tdr)
    bench.must("TDH.MEM.TRACK", rcx=bench.tdr)
    bench.must("TDH.VP.FLUSH", rcx=bench.victim.tdvpr)
    real = keyhole.Keyhole.map

    def map_page(self: keyhole.Keyhole, hpa: int, hkid: int) -> memoryview:
        view = real(self, hpa, hkid)
        if hpa == old:
            monkeypatch.undo()
            other.does(twice(host, old, b"chosen by the hypervisor".ljust(PAGE)))
        return view

    monkeypatch.setattr(keyhole.Keyhole, "map", map_page)
    bench.must("TDH.MEM.PAGE.RELOCATE", rcx=RAM, rdx=bench.tdr, r8=new)
    assert other.waited
    other.ends()
    assert b"chosen" not in bench.machine.memory.read(bench.keyed(new), PAGE, SEAM)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with build_machine("scripted") as built:
        yield built


def posting_guest(machine: Machine, program: Any, descriptor: int) -> BareGuest:
    """A guest in 64-bit code, to which a hypervisor posts interrupts."""
    machine.engine.add_program(program)  # type: ignore[attr-defined]
    guest = BareGuest(machine)
    guest.vmcs.write(f.PIN_BASED_CONTROLS, 1 << 7)
    guest.vmcs.write(f.POSTED_INTERRUPT_DESCRIPTOR, descriptor)
    guest.vmcs.write(f.POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xF2)
    return guest


def test_posted_interrupts_are_taken_in_one_piece(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(_cpu: Any) -> Any:
        yield Pause(1000)

    descriptor, other = 0x30000, Elsewhere()
    guest = posting_guest(machine, program, descriptor)
    machine.memory.write(descriptor, (1 << 0x51 | 1 << 256).to_bytes(64, "little"))
    late = 1 << 0x77 | 1 << 256

    def drain(content: memoryview) -> list[int]:
        monkeypatch.undo()
        vectors = apicv.drain_posted(content)
        other.does(lambda: machine.memory.write(descriptor, late.to_bytes(64, "little")))
        return vectors

    monkeypatch.setattr(unit, "drain_posted", drain)
    guest.lp.interrupt(0xF2)
    guest.run()
    assert other.waited
    other.ends()
    assert int.from_bytes(machine.memory.read(descriptor, 64), "little") == late, "it is not lost"


def test_a_virtual_apic_page_that_is_taken_away_meanwhile_is_not_used(machine: Machine) -> None:
    """The page leaves the cache, and becomes the hypervisor's, while the guest runs."""

    def program(cpu: Any) -> Any:
        machine.memory.write(VAPIC, bytes(PAGE))
        machine.memory.write(VAPIC, bytes(PAGE))
        guest.lp.interrupt(0xF2)
        cpu.interrupts.clear()
        yield Pause(1000)

    descriptor = 0x30000
    guest = posting_guest(machine, program, descriptor)
    machine.memory.write(descriptor, (1 << 0x51 | 1 << 256).to_bytes(64, "little"))
    out = guest.run()
    assert (out.reason, out.intr_info) == (reason.EXCEPTION_OR_NMI, reason.MACHINE_CHECK_INFO)
    assert not any(machine.memory.read(VAPIC, PAGE)), "no request was noted in a page that is not the guest's"
    machine.memory.direct_zero(VAPIC | HKID << machine.memory.addresses.hpa_bits, PAGE, SEAM)


def test_memory_is_free_while_a_guest_runs(machine: Machine) -> None:
    other = Elsewhere()

    def program(_cpu: Any) -> Any:
        other.does(lambda: machine.memory.write(0x30000, b"here"))
        yield Pause(1000)

    machine.engine.add_program(program)  # type: ignore[attr-defined]
    BareGuest(machine).run()
    assert other.waited is False
