"""``swtdx demo``: every scene plays, says what really happened, and does so again in the same words."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from swtdx.cli.main import main
from swtdx.lab import memory, pages
from swtdx.lab.catalogue import attacks
from swtdx.module.host import enter, mem_page
from swtdx.vmm.processor import TIMER_VECTOR

SCENES = ("mmio", "interrupt", "life")


def play(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["demo", *arguments]) == status
    return capsys.readouterr().out


def steps(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def events(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for step in shown for event in step.get("events", [])]


def number(event: dict[str, Any], register: str) -> int:
    return int(event["registers"][register]["value"], 16)


@cache
def _recorded(scene: str, seed: str) -> str:
    command = [sys.executable, "-m", "swtdx.cli.main", "demo", scene, "--json", "--seed", seed]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def recorded(scene: str, seed: str = "one") -> list[dict[str, Any]]:
    return steps(_recorded(scene, seed))


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_seed_gives_the_same_text(scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = play(capsys, scene)
    assert play(capsys, scene) == text
    assert play(capsys, scene, "--seed", "another") != text or scene == "life"
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_without_a_scene_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = play(capsys)
    assert [line.split()[2] for line in text.splitlines()] == ["mmio", "interrupt", "life", "attack"]
    assert set(json.loads(play(capsys, "--json"))) == {"mmio", "interrupt", "life", "attack"}


def test_no_such_scene(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "hamlet"]) == 2
    error = capsys.readouterr().err
    assert "hamlet" in error
    assert "mmio" in error


# ------------------------------------------------------------------ mmio
def test_mmio_carries_the_devices_value_and_nothing_else() -> None:
    values = set()
    for seed in ("one", "two"):
        shown = recorded("mmio", seed)
        assert not any(step["failed"] for step in shown)
        device = next(step["device"]["value"] for step in shown if "device" in step)
        assert shown[-1]["guest"]["value"] == device
        values.add(device)
        story = events(shown)
        answer = [event for event in story if event["event"] == "TDVMCALL answer"][-1]
        arrival = [event for event in story if event["event"] == "TDCALL return"][-1]
        assert number(answer, "R11") == number(arrival, "R11") == int(device, 16)
        # The registers that the guest kept are in no event to which the hypervisor is a party.
        table = next(step for step in shown if "device" in step)["tables"][0]
        kept = {row["in the guest"] for row in table["rows"] if int(row["in the hypervisor"], 16) == 0}
        assert len(kept) >= 6
        for event in story:
            if "hypervisor" in (event["from"], event["to"]):
                told = {int(each["value"], 16) for each in event.get("registers", {}).values()}
                assert not told & {int(value, 16) for value in kept}, event
    assert len(values) == 2


def test_mmio_is_told_in_the_order_of_the_abi() -> None:
    story = [(event["event"], event.get("name")) for event in events(recorded("mmio"))]
    wanted = [
        ("SEAMCALL", "TDH.VP.ENTER"),
        ("VM entry", None),
        ("injection", "#VE"),
        ("TDCALL", "TDG.VP.VEINFO.GET"),
        ("TDCALL return", "TDG.VP.VEINFO.GET"),
        ("TDCALL", "TDG.VP.VMCALL"),
        ("SEAMRET", "TDH.VP.ENTER"),
        ("TDVMCALL", "#VE.RequestMMIO"),
        ("SEAMCALL", "TDH.VP.ENTER"),
        ("TDCALL return", "TDG.VP.VMCALL"),
    ]
    at = 0
    for each in wanted:
        at = story.index(each, at) + 1
    assert Counter(kind for kind, _ in story)["SEAMCALL"] == 2


def test_mmio_what_the_hypervisor_gets_when_it_looks() -> None:
    table = next(step for step in recorded("mmio") if "device" in step)["tables"][1]
    got = {(row["it looks at"], row["how"].split(" at ")[0]): row["it gets"] for row in table["rows"]}
    assert got["RIP", "TDH.VP.RD"] == "TDX_METADATA_FIELD_NOT_READABLE"
    assert got["private page", "TDH.MEM.RD"] == "TDX_TD_NON_DEBUG"
    assert "#PF(RSVD)" in got.values()
    assert list(got.values()).count("zeros") == 2
    for row in table["rows"]:
        assert row["what is there"] not in row["it gets"]


# ------------------------------------------------------------------ interrupt
def test_interrupt_reveals_nothing_and_delivers_without_an_exit() -> None:
    shown = recorded("interrupt")
    assert not any(step["failed"] for step in shown)
    story = events(shown)
    out = next(event for event in story if event["event"] == "SEAMRET")
    assert out["reason"] == "EXTERNAL_INTERRUPT"
    passed = {name: int(each["value"], 16) for name, each in out["registers"].items() if name != "RAX"}
    assert passed.pop("R9") & 0xFF == TIMER_VECTOR
    assert set(passed.values()) == {0}
    assert shown[-1]["taken"] == [0x41]
    kinds = [event["event"] for event in story]
    between = kinds[kinds.index("posted interrupts") : kinds.index("virtual interrupt")]
    assert "VM exit" not in between


def test_an_interrupt_that_spills_registers_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = enter._asynchronous

    def leaky(call: Any, leaving: Any) -> int:
        status = real(call, leaving)
        call.gpr[3] = call.lp.vmx.current.context.gpr[3]
        return status

    monkeypatch.setattr(enter, "_asynchronous", leaky)
    assert "FAILED" in play(capsys, "interrupt", status=1)


# ------------------------------------------------------------------ life
def test_life_goes_through_the_states_in_order() -> None:
    shown = recorded("life")
    assert not any(step["failed"] for step in shown)
    facts = [step["facts"] for step in shown]

    def course(name: str) -> list[str]:
        values = [fact[name] for fact in facts if name in fact]
        return [value for at, value in enumerate(values) if not at or values[at - 1] != value]

    assert course("LIFECYCLE_STATE") == ["HKID_ASSIGNED", "KEYS_CONFIGURED", "BLOCKED", "TEARDOWN"]
    assert course("OP_STATE") == ["-", "UNINITIALIZED", "INITIALIZED", "RUNNABLE", "-"]
    assert [value.split()[1] for value in course("HKID")] == ["ASSIGNED", "FLUSHED", "FREE"]
    sept = [fact["SEPT 0x4000000 level 0"] for fact in facts if "SEPT 0x4000000 level 0" in fact]
    assert sept == ["PENDING", "MAPPED", "BLOCKED", "FREE"]
    leaves = {event["name"] for event in events(shown) if event["event"] == "SEAMCALL"}
    assert len(leaves) >= 20
    assert shown[-1]["pages"] == 0


# ------------------------------------------------------------------ attack
def test_attack_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One attack of each family, and the one that TDX does not stop; tests/lab has all of them."""
    first = {each.family: each for each in reversed(attacks())}
    chosen = [*first.values(), memory.replay_an_old_line]
    monkeypatch.setattr("swtdx.lab.catalogue.ATTACKS", chosen)
    text = play(capsys, "attack")
    assert "NOT REFUSED" not in text
    assert "works, as on hardware" in text
    for name in (
        "METADATA_FIELD_NOT_WRITABLE",
        "TD_NON_DEBUG",
        "PAGE_METADATA_INCORRECT | R8",
        "HKID_NOT_FREE",
    ):
        assert name in text
    assert text.splitlines()[-4].split() == ["refused", str(len(first))]
    assert play(capsys, "attack") == text


def test_an_attack_that_gets_through_is_exit_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mem_page, "check_tracked", lambda *_args: None)
    monkeypatch.setattr("swtdx.lab.catalogue.ATTACKS", [pages.remove_without_blocking])
    shown = steps(play(capsys, "attack", "--json", status=1))
    assert [step["failed"] for step in shown] == [True, False]
    assert shown[-1]["breaches"] == 1


# ------------------------------------------------------------------ terminals
@pytest.mark.parametrize("no_color", [False, True])
def test_colour_on_a_terminal_only_without_no_color(no_color: bool) -> None:
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "swtdx.cli.main", "demo", "interrupt"]
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
        os.close(ours)
    assert process.returncode == 0
    assert (b"\x1b[36m" in seen or b"\x1b[32m" in seen) is not no_color
    assert b"TDH.VP.ENTER" in seen


# ------------------------------------------------------------------ run --trace
@pytest.mark.qemu
def test_run_trace_agrees_with_the_summary(tmp_path: Path) -> None:
    """On QEMU, with real code: the trace has the SEAMCALLs and TDVMCALLs that the run counted itself."""
    trace, summary = tmp_path / "trace", tmp_path / "summary"
    command = [
        sys.executable,
        "-m",
        "swtdx.cli.main",
        "run",
        "--tiny",
        "--trace",
        str(trace),
        "--json",
        str(summary),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    told = json.loads(summary.read_text())
    assert Counter(line["name"] for line in lines if line["event"] == "SEAMCALL") == told["seamcalls"]
    assert Counter(line["name"] for line in lines if line["event"] == "TDVMCALL") == told["tdvmcalls"]
    kinds = Counter(line["event"] for line in lines)
    assert kinds["VM entry"] == kinds["VM exit"] > 0
