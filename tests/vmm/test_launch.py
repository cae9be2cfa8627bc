"""launch(): what is printed, how a run is explained, and what is left behind; guests of the fake module."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from swtdx.arch import status as st
from swtdx.devices.board import Board, BoardConfig
from swtdx.guests.direct_boot import build_tiny_boot
from swtdx.guests.plan import GuestPlan
from swtdx.vmm.command_io import CommandIo
from swtdx.vmm.console import Guest as ConsoleGuest
from swtdx.vmm.errors import ConfigError, SeamcallError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.launch import LaunchConfig, launch
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.td_params import TdConfig
from tests.vmm.fake_machine import FakeMachine
from tests.vmm.support import POWER_OFF, call

Guest = Generator[tuple[Any, ...], Any, None]
RECLAIM = 28


class Screen:
    """A console that keeps what is written, and may break or type."""

    def __init__(self, breaks_after: int | None = None, leave: str | None = None) -> None:
        self.shown = bytearray()
        self.breaks_after = breaks_after
        self.leave = leave
        self.attached_now = False
        self.size = (132, 43)

    def write(self, data: bytes) -> None:
        if self.breaks_after is not None and len(self.shown) >= self.breaks_after:
            raise BrokenPipeError(32, "Broken pipe")
        self.shown += data

    @contextlib.contextmanager
    def attached(self, guest: ConsoleGuest) -> Iterator[None]:
        self.attached_now = True
        if self.leave is not None:
            guest.send(b"keys")
            guest.resize(80, 25)
            guest.leave(self.leave)
        try:
            yield
        finally:
            self.attached_now = False


def scripted(acts: tuple[tuple[Any, ...], ...]) -> Guest:
    for act in acts:  # noqa: UP028  (a tuple has no send)
        yield act


def run(
    text: bytes,
    *then: tuple[Any, ...],
    screen: Screen | None = None,
    machine: FakeMachine | None = None,
    **config: Any,
) -> tuple[RunResult, Screen, FakeMachine]:
    machine = machine or FakeMachine()
    screen = screen or Screen()
    acts = (*then, POWER_OFF) if POWER_OFF not in then else then

    def program() -> Guest:
        for byte in text:
            yield call(30, 1, 1, 0x3F8, byte)
        yield from scripted(acts)

    machine.module.programs = {0: program}
    result = launch(machine.host, LaunchConfig(None, **config), screen)
    assert not screen.attached_now
    return result, screen, machine


def nothing_left(machine: FakeMachine) -> bool:
    return not machine.module.tds and not machine.module.pamt and not machine.module.blocks


def test_output_and_phases() -> None:
    result, screen, machine = run(b"hello\r\n")
    assert result.reason is EndReason.POWER_OFF
    assert screen.shown == b"hello\r\n"
    assert result.exit_status is None
    assert list(result.stats.phases) == ["module", "build", "run", "teardown"]
    assert nothing_left(machine)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (call(12, 1), EndReason.FATAL_ERROR),  # halts for good after the panic
        (call(30, 1, 1, 0xCF9, 6), EndReason.FATAL_ERROR),  # panic=1: restarts
        (POWER_OFF, EndReason.POWER_OFF),  # it went on, and switched off
    ],
)
def test_a_panic_is_seen(then: tuple[Any, ...], reason: EndReason) -> None:
    text = b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[    1.1] CPU: 0\r\n"
    result, _, _ = run(b"x" * 5000 + text, then, timeout=5)
    assert result.reason is reason
    if reason is EndReason.FATAL_ERROR:
        assert result.detail == "kernel panic: VFS: Unable to mount root fs"


def test_only_the_commands_output_is_shown() -> None:
    log = bytearray()
    text = b"boot\r\n\x1eT BEGIN\nline 1\nline 2\n\x1eT END 3\nbye\r\n"
    shown = bytearray()
    result, screen, _ = run(text, command=CommandIo("T", shown.extend), log=log.extend)
    assert screen.shown == b""
    assert shown == b"line 1\nline 2\n"
    assert result.exit_status == 3
    assert log == b"boot\r\nbye\r\n"


def test_a_command_that_did_not_end() -> None:
    shown = bytearray()
    result, _, _ = run(b"\x1eT BEGIN\nhalf a line\x1eT E", command=CommandIo("T", shown.extend))
    assert shown == b"half a line\x1eT E"
    assert result.exit_status is None


def test_the_reader_goes_away() -> None:
    """swtdx run | head: the run ends, in an orderly way."""
    result, _, machine = run(b"abcdefgh" * 100, screen=Screen(breaks_after=5))
    assert result.reason is EndReason.STOPPED
    assert result.detail == "the console's output was closed (Broken pipe)"
    assert nothing_left(machine)


def test_the_user_leaves() -> None:
    result, _, machine = run(b"", call(12, 0), screen=Screen(leave="Ctrl-A x"))
    assert (result.reason, result.detail) == (EndReason.STOPPED, "Ctrl-A x")
    assert nothing_left(machine)


def test_no_teardown() -> None:
    result, _, machine = run(b"", teardown=False)
    assert result.reason is EndReason.POWER_OFF
    assert machine.module.tds
    assert "teardown" not in result.stats.phases


def test_a_teardown_that_fails_does_not_hide_the_run() -> None:
    machine = FakeMachine()
    machine.module.fail[RECLAIM, 1] = st.with_operand(st.TDX_PAGE_METADATA_INCORRECT, 1)
    result, _, _ = run(b"", call(12, 1), machine=machine)
    assert result.reason is EndReason.HALTED
    assert "its teardown failed: TDH.PHYMEM.PAGE.RECLAIM" in result.detail


def test_a_td_that_cannot_be_built_leaves_nothing() -> None:
    machine = FakeMachine()
    machine.module.fail[17, 1] = st.TDX_OP_STATE_INCORRECT
    with pytest.raises(SeamcallError, match=r"TDH\.MR\.FINALIZE"):
        run(b"", machine=machine)
    assert nothing_left(machine)
    machine = FakeMachine()
    machine.module.fail[6, 1] = st.with_operand(st.TDX_OPERAND_INVALID, 8)  # preaugmenting
    machine.module.programs = {}
    with pytest.raises(ConfigError, match="whole number of 4 KiB pages"):
        launch(machine.host, LaunchConfig(b"no kernel", memory=4097))


def test_several_launches_on_one_hypervisor() -> None:
    machine = FakeMachine()
    hypervisor = Hypervisor(machine.host)

    def program() -> Guest:
        yield POWER_OFF

    machine.module.programs = {0: program}
    for _ in range(3):
        assert launch(hypervisor, LaunchConfig(None), Screen()).reason is EndReason.POWER_OFF
        assert hypervisor.allocator.used == 0


class Elsewhere:
    """A way to start a TD that is none of ours: the tiny guest behind another board."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def board(self, td: TdConfig) -> BoardConfig:
        return BoardConfig(apic_ids=tuple(range(td.vcpus)), console=False, chipset=True)

    def plan(self, td: TdConfig, board: Board) -> GuestPlan:
        self.seen += board.pci.functions
        return build_tiny_boot()


def test_another_way_to_start() -> None:
    boot = Elsewhere()
    result, screen, machine = run(b"elsewhere", boot=boot)
    assert (result.reason, bytes(screen.shown)) == (EndReason.POWER_OFF, b"elsewhere")
    assert boot.seen == [0, 31 << 3], "host bridge and LPC bridge: the plan sees its own board"
    assert nothing_left(machine)
