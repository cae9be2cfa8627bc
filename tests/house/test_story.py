"""The story of one exit in docs/architecture.md is played, and the code goes the way that it tells."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from swtdx.arch import ghci
from swtdx.devices.board import BoardConfig
from swtdx.machine.engine.scripted import Script, Tdcall, Write
from swtdx.machine.engine.scripted.faults import GuestFault
from swtdx.machine.engine.scripted.ports import In
from swtdx.machine.machine import MachineConfig
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.house.linter import SOURCE, TOP

#: ``file``, and what is mentioned of it in brackets right after.
_MENTION: Final = re.compile(r"`([a-z_/0-9]+\.py)`(?:\s\(`([\w.]+)`\))?")
CODE, RAM = 0x100000, 0x4000000
_VE, _VEINFO_GET, _ACCEPT = 20, 3, 6

#: What ran: a file's path below the package, and the qualified name of a function in it.
Place = tuple[str, str]


def _story() -> tuple[list[list[Place]], list[Place]]:
    """Places by step, and those of the paragraph about memory behind the last."""
    text = (TOP / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = text.partition("## The story of one exit")[2].partition("\n## ")[0]
    steps, _, memory = text.partition("\nAn access to memory that is not there")
    parts = re.split(r"^\d+\. ", steps, flags=re.MULTILINE)[1:]
    return [_places(part) for part in parts], _places(memory.partition("`tests/")[0])


def _places(text: str) -> list[Place]:
    return [(file, name) for file, name in _MENTION.findall(text)]


def _ran(places: list[Place], trail: Iterator[Place], where: str) -> None:
    """See that ``places`` come next on ``trail``, in this order, with others between them."""
    for file, name in places:
        if file.startswith(("arch/", "firmware/")):
            # Tables, and what ran long before.
            assert (SOURCE / file).is_file(), f"{where} names {file}"
            continue
        assert any(file == there and (not name or name == function) for there, function in trail), (
            f"{where}: {file} {name} was not executed after what is told before it"
        )


class _Trail:
    """What this thread calls in the package, and where it returns to in the hypervisor."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._known: dict[Any, Place | None] = {}

    def _place(self, frame: FrameType | None) -> Place | None:
        if frame is None:
            return None
        code = frame.f_code
        if code not in self._known:
            path = Path(code.co_filename)
            inside = path.is_relative_to(SOURCE)
            self._known[code] = (path.relative_to(SOURCE).as_posix(), code.co_qualname) if inside else None
        return self._known[code]

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "return"):
            place = self._place(frame if event == "call" else frame.f_back)
            if place is not None and (event == "call" or place[0].startswith("vmm/")):
                self.places.append(place)


def _vmcall(function: int, *args: int) -> Any:
    registers = {f"r{12 + n}": value for n, value in enumerate(args)}
    return (yield Tdcall(rax=0, rcx=ghci.BASIC_MASK, r10=0, r11=function, **registers))


def _clock(_cpu: Script) -> Any:
    """IN from port 0x71, as Linux does it."""
    vector = None
    try:
        yield In(0x71, 1)
    except GuestFault as fault:
        vector = fault.vector
    if vector == _VE:
        yield Tdcall(rax=_VEINFO_GET)
        after = yield from _vmcall(ghci.IO, 1, 0, 0x71, 0)
        assert after.r10 == 0
        yield from _vmcall(ghci.IO, 1, 1, 0x605, 0x20)


def _memory(_cpu: Script) -> Any:
    """A write to memory that is not there yet, and not accepted when it is."""
    vector = None
    try:
        yield Write(RAM, 1)
    except GuestFault as fault:
        vector = fault.vector
    if vector == _VE:
        yield Tdcall(rax=_VEINFO_GET)
        accepted = yield Tdcall(rax=_ACCEPT, rcx=RAM | 1)
        assert accepted.rax == 0
        yield Write(RAM, 1)
        yield from _vmcall(ghci.IO, 1, 1, 0x605, 0x20)


def _play(program: Any) -> Iterator[Place]:
    """What runs, from the first VM entry on."""
    machine = MachineConfig(engine="scripted", processors_per_package=1)
    trail = _Trail()
    with Platform.boot(PlatformConfig(machine=machine)) as platform:
        engine: Any = platform.machine.engine
        script = engine.add_program(program)
        hypervisor = Hypervisor(platform.host)
        td = Td.build(
            hypervisor, TdConfig(pending_ve=True), [InitialPage(CODE, b"")], ram=[(RAM, RAM + (4 << 20))]
        )
        runner = MachineIo(td, BoardConfig(console=False), console_out=lambda _: None).runner(
            hypervisor.processors
        )
        before = sys.getprofile()
        sys.setprofile(trail)
        try:
            result = runner.run(60)
        finally:
            sys.setprofile(before)
        if script.error is not None:
            raise script.error
        assert result.reason is EndReason.POWER_OFF, result
    return iter(trail.places)


def test_one_exit() -> None:
    steps, _ = _story()
    assert len(steps) == 10
    trail = _play(_clock)
    for number, places in enumerate(steps, 1):
        assert places, f"step {number} names no file"
        _ran(places, trail, f"step {number}")


def test_memory_that_is_not_there() -> None:
    _, memory = _story()
    assert len(memory) >= 5
    _ran(memory, _play(_memory), "the paragraph about memory")


def test_a_false_story_is_noticed() -> None:
    trail = [("a.py", "f"), ("b.py", "B.g"), ("a.py", "f")]
    _ran([("a.py", ""), ("b.py", "B.g"), ("a.py", "f")], iter(trail), "step 1")
    for places in ([("c.py", "")], [("b.py", "g")], [("b.py", ""), ("b.py", "")], [("arch/none.py", "")]):
        with pytest.raises(AssertionError, match="step 1"):
            _ran(places, iter(trail), "step 1")
