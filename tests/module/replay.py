"""Replaying of recorded calls and VM exits: registers and VMCS fields, without an engine.

A recording is a list of events, in the order in which they happened:

``["write", pa, hex]``, ``["zero", pa, size]``
    The hypervisor's software writes memory (``hex`` without zeros at its end).
``["msr", lp, index, value]``
    An MSR of a processor gets another value.
``["call", lp, given, then]``
    SEAMCALL with registers ``given``; afterwards those in ``then`` have changed, and no others.
``["enter", lp, given]`` ... ``["left", then]``
    TDH.VP.ENTER.  Between the two come, in turns, ``["in", registers, fields]``: at VM entry these are what
    has changed since the last VM exit (since zero, at the first one), and ``["exit", information, registers,
    fields, pages]``: what the guest has changed since, and the exit information.  The guest itself is not
    there.  Pages are what it wrote to its memory: ``[hpa, hkid, hex]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from swtdx.arch import regs
from swtdx.arch import vmcs as f
from swtdx.arch.exits import ExitReason
from swtdx.machine.vmx.unit import VmxUnit
from swtdx.proof.conformance.world import World

#: What registers hold that an event does not speak of.
FILL: Final = tuple(0xF111_0000_0000_0F1F + (number << 32) for number in range(16))
RSP: Final = 4
#: VMCS fields that are compared at VM entry: guest state, controls that the module changes, and the event.
CONTROLS: Final = (
    "PIN_BASED_CONTROLS", "PROC_BASED_CONTROLS", "PROC_BASED_CONTROLS2", "EXCEPTION_BITMAP",
    "CR0_READ_SHADOW", "CR4_READ_SHADOW", "TPR_THRESHOLD", "ENTRY_INTERRUPTION_INFO",
    "ENTRY_EXCEPTION_ERROR_CODE", "ENTRY_INSTRUCTION_LENGTH",
)  # fmt: skip
FIELDS: Final = {
    name: encoding for encoding, name in f.NAMES.items() if name in CONTROLS or f.is_guest_state(encoding)
}
#: Exit information: name in ``VmExit`` by name in an event.
INFORMATION: Final = {
    "reason": "reason", "qualification": "qualification", "gpa": "gpa", "gla": "gla", "length": "length",
    "instruction": "instruction_info", "interruption": "intr_info", "error": "intr_error",
    "vectoring": "idt_info", "vectoring_error": "idt_error",
}  # fmt: skip


class Differs(AssertionError):
    """Something is not as it was recorded."""


def numbers(pairs: dict[str, str]) -> dict[str, int]:
    """Names and hexadecimal numbers."""
    return {name: int(value, 16) for name, value in pairs.items()}


def registers(given: dict[str, str], base: tuple[int, ...] | list[int] = FILL) -> list[int]:
    """RAX..R15: ``base`` with what an event says."""
    values = list(base)
    for name, value in numbers(given).items():
        values[regs.number(name)] = value
    return values


def _differences(wanted: list[int], got: list[int]) -> list[str]:
    return [
        f"{regs.NAMES[number]} is {got[number]:#x}, not {wanted[number]:#x}"
        for number in range(16)
        if number != RSP and wanted[number] != got[number]
    ]


class Replay:
    """Events on one machine.  ``report`` is told what is wrong with each vector."""

    def __init__(self, world: World, report: Callable[[list[str]], None]) -> None:
        self._world = world
        self._report = report
        self._events: Iterator[list[Any]] = iter(())
        #: At the last VM exit; None before the first VM entry.
        self._gpr: list[int] | None = None
        self._fields: dict[str, int] = {}
        self._reason = -1

    def run(self, events: list[list[Any]]) -> None:
        """Do it all."""
        self._events = iter(events)
        with self._machine_without_guests():
            for event in self._events:
                self._do(event)

    def _do(self, event: list[Any]) -> None:
        world = self._world
        match event:
            case ["write", pa, data]:
                world.memory.write(int(pa, 16), bytes.fromhex(data))
            case ["zero", pa, size]:
                world.memory.clear(int(pa, 16), size)
            case ["msr", lp, index, value]:
                world.lps[lp].msrs.poke(index, int(value, 16))
            case ["call", lp, given, then]:
                self._seamcall(lp, given, then)
            case ["enter", lp, given]:
                self._gpr = None
                self._seamcall(lp, given, None)
            case _:
                raise Differs(f"{event} is not where it should be")

    def _seamcall(self, lp: int, given: dict[str, str], then: dict[str, str] | None) -> None:
        processor = self._world.platform.host.processors[lp]
        before = registers(given)
        processor.gpr[:] = before
        if not processor.seamcall():
            raise Differs("VMfailInvalid")
        after = list(processor.gpr)
        if then is None:
            name, then = next(self._events)
            if name != "left":
                raise Differs(f"the TD's run has ended, but it should have gone on with {name}")
            if self._reason >= 0:
                self._vector(f"after exit {self._reason}", _differences(registers(then, before), after))
                return
        self._vector(f"leaf {before[0] & 0xFFFF}", _differences(registers(then, before), after))

    def _vector(self, what: str, wrong: list[str]) -> None:
        self._report([f"{what}: {each}" for each in wrong])

    # ------------------------------------------------------------------ VM entry and exit
    @contextmanager
    def _machine_without_guests(self) -> Iterator[None]:
        def enter(unit: VmxUnit) -> Any:
            return self._enter(unit)

        with mock.patch.object(VmxUnit, "enter", enter):
            yield

    def _enter(self, unit: VmxUnit) -> Any:
        vmcs = unit.current
        assert vmcs is not None
        event = next(self._events)
        if event[0] != "in":
            raise Differs(f"a VM entry comes instead of {event}")
        _in, changed, fields = event
        wanted = registers(changed, self._gpr or [0] * 16)
        got = list(vmcs.context.gpr)
        wrong = _differences(wanted, got)
        expected = dict.fromkeys(FIELDS, 0) | self._fields | numbers(fields)
        if self._gpr is None:
            expected = dict.fromkeys(FIELDS, 0) | numbers(fields)
        for name, encoding in FIELDS.items():
            value = vmcs.read(encoding)
            if value != expected[name]:
                wrong.append(f"{name} is {value:#x}, not {expected[name]:#x}")
        self._vector(f"entry after exit {self._reason}" if self._gpr is not None else "first entry", wrong)
        vmcs.take_entry_event()
        for event in self._events:
            if event[0] == "exit":
                return self._exit(unit, event)
            self._do(event)
        raise Differs("the recording ends inside a guest")

    def _exit(self, unit: VmxUnit, event: list[Any]) -> Any:
        vmcs = unit.current
        assert vmcs is not None
        _exit, information, changed, fields, pages = event
        context = vmcs.context
        for name, value in numbers(changed).items():
            context.gpr[regs.number(name)] = value
        for name, value in numbers(fields).items():
            if f.is_guest_state(FIELDS[name]):
                vmcs.write(FIELDS[name], value)
        for hpa, hkid, data in pages:
            page = unit.machine.memory.map_page(int(hpa, 16), hkid)
            page[:] = bytes.fromhex(data).ljust(4096, b"\0")
        told = numbers(information)
        outcome = unit.exit.set(told["reason"])
        for name, attribute in INFORMATION.items():
            if name in told:
                setattr(outcome, attribute, told[name])
        self._gpr = list(context.gpr)
        self._fields = {name: vmcs.read(encoding) for name, encoding in FIELDS.items()}
        self._reason = ExitReason(told["reason"] & 0xFFFF).value
        return outcome
