"""The attacks on the real module: all refused, each by the status that the ABI gives it; and an attack that
gets through because a check was taken away is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from swtdx.arch import status as st
from swtdx.arch.leaves import BY_NAME
from swtdx.cli.demo_text import step_lines
from swtdx.firmware.bios import BiosConfig
from swtdx.lab import bench as bench_module
from swtdx.lab.attack import ATTACKS, Attack, Result
from swtdx.lab.attempt import Attempt
from swtdx.lab.bench import Bench
from swtdx.lab.catalogue import attacks, carry_out, families
from swtdx.machine.memory import Integrity, Requestor
from swtdx.machine.memory.bus import Bus
from swtdx.machine.vmx import apicv
from swtdx.module import checks
from swtdx.module.host import enter, mem_page, mng, mr, vp
from swtdx.module.objects.pamt import Pamt
from swtdx.module.objects.td import Td
from swtdx.platform import PlatformConfig
from swtdx.scenes.attack import step_of

BY_ATTACK_NAME = {(each.family, each.name): each for each in attacks()}
#: Status (upper half, and operand id where one is named) by leaf and what it was tried on: status-codes.md
#: and the leaves' pages in seamcall.md.
EXPECTED = {
    "TDH.VP.WR GUEST_RIP": 0xC0000C0100000000,
    "TDH.VP.RD GUEST_RIP": 0xC0000C0200000000,
    "TDH.VP.RD RBX": 0xC0000C0200000000,
    "TDH.MNG.WR ATTRIBUTES.DEBUG": 0xC0000C0100000000,
    "TDH.MEM.RD the secret": 0xC000060500000000,
    "TDH.MEM.WR over the secret": 0xC000060500000000,
    "TDH.MEM.PAGE.AUG in another TD": 0xC000030000000008,
    "TDH.MEM.PAGE.AUG a second time": 0xC000030000000008,
    "TDH.MEM.PAGE.AUG over a mapping": 0xC0000B0D00000001,
    "TDH.MEM.PAGE.AUG of the SEAM range": 0xC000010100000008,
    "TDH.MEM.PAGE.ADD after FINALIZE": 0xC000060800000000,
    "TDH.MEM.PAGE.REMOVE without BLOCK": 0xC0000B0600000001,
    "TDH.MEM.PAGE.REMOVE without TRACK": 0xC0000B0800000001,
    "TDH.PHYMEM.PAGE.RECLAIM a page": 0xC000060700000000,
    "TDH.MNG.CREATE with the victim's HKID": 0xC000082000000000,
    "TDH.MNG.CREATE with a shared KeyID": 0xC000010000000002,
    "TDH.MNG.KEY.FREEID of a living TD": 0xC000060700000000,
    "TDH.MNG.KEY.FREEID before CACHE.WB": 0x8000081700000000,
    "TDH.MNG.VPFLUSHDONE before VP.FLUSH": 0x8000082400000000,
    "TDH.VP.ENTER on another processor": 0x8000070100000000,
    "TDH.VP.ENTER of a running vCPU": 0xC000070000000000,
    "TDH.MEM.PAGE.REMOVE in the old epoch": 0xC0000B0800000001,
    "TDH.MEM.TRACK before it has left": 0x8000020100000000,
    "TDH.VP.ENTER of a forged TDVPR": 0xC000030000000001,
    "TDH.VP.ENTER before FINALIZE": 0xC000060800000000,
    "TDH.MR.EXTEND after FINALIZE": 0xC000060800000000,
}


def named(family: str, name: str) -> Attack:
    return BY_ATTACK_NAME[family, name]


@cache
def outcome(each: Attack) -> Result:
    return carry_out(each)


@pytest.mark.parametrize("each", attacks(), ids=lambda each: f"{each.family}: {each.name}")
def test_refused(each: Attack) -> None:
    result = outcome(each)
    assert result.attempts
    assert result.harm == ""
    assert not result.breach, [attempt for attempt in result.attempts if not attempt.refused]
    assert result.refused is not bool(each.limit)
    assert max(len(line.text) for line in step_lines(1, step_of(result))) <= 100
    for attempt in result.attempts:
        expected = EXPECTED.get(attempt.what)
        if expected is not None:
            assert attempt.status == expected, attempt
        if attempt.operands and attempt.status is not None:
            leaf = BY_NAME[attempt.what.split()[0]]
            declared = {outcome.status for outcome in leaf.outcomes}
            assert attempt.status & st.CODE_MASK in declared, attempt


def test_every_expectation_belongs_to_an_attempt() -> None:
    tried = {attempt.what for each in attacks() for attempt in outcome(each).attempts}
    assert set(EXPECTED) <= tried


def test_the_catalogue() -> None:
    assert {each.family for each in ATTACKS} == set(families())
    assert len(BY_ATTACK_NAME) == len(ATTACKS) == sum(len(attacks(family)) for family in families())


# ------------------------------------------------------------------ walls with holes
def debug_for_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Td, "debug", property(lambda _self: True))


def registers_spill_at_an_interrupt(patch: pytest.MonkeyPatch) -> None:
    real = enter._asynchronous

    def leaky(call: Any, leaving: Any) -> int:
        status = real(call, leaving)
        call.gpr[3] = call.lp.vmx.current.context.gpr[3]
        return status

    patch.setattr(enter, "_asynchronous", leaky)


def all_registers_are_taken_over(patch: pytest.MonkeyPatch) -> None:
    real = enter._load_registers

    def careless(call: Any, vcpu: Any, last_exit: int, handle: int) -> None:
        real(call, vcpu, last_exit, handle)
        vcpu.gpr[3] = call.inputs[3]

    patch.setattr(enter, "_load_registers", careless)


def no_tracking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mem_page, "check_tracked", lambda *_args: None)


def any_page_is_free(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pamt, "free_range", lambda self, hpa, _operand, size, **_held: self.owned(hpa, size))


def any_operation_state(patch: pytest.MonkeyPatch) -> None:
    for module in (checks, mr, mng, vp, mem_page):
        if hasattr(module, "check_op_state"):
            patch.setattr(module, "check_op_state", lambda *_args, **_named: None)


def private_keyids_for_the_host(patch: pytest.MonkeyPatch) -> None:
    real = Bus.admits

    def admits(self: Bus, hpa: int, size: int, keyid: int, requestor: Requestor) -> bool:
        return real(self, hpa, size, keyid, Requestor.SEAM if requestor is Requestor.HOST else requestor)

    patch.setattr(Bus, "admits", admits)


def exceptions_are_posted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(apicv, "_EXCEPTIONS", 0)


def no_mac(patch: pytest.MonkeyPatch) -> None:
    def logical(**named: Any) -> PlatformConfig:
        return replace(PlatformConfig(**named), bios=BiosConfig(integrity=Integrity.LOGICAL))

    patch.setattr(bench_module, "PlatformConfig", logical)


@pytest.mark.parametrize(
    ("hole", "family", "name"),
    [
        (debug_for_everybody, "memory", "debug calls"),
        (debug_for_everybody, "registers", "read the registers"),
        (debug_for_everybody, "registers", "change RIP"),
        (registers_spill_at_an_interrupt, "registers", "interrupt and look"),
        (all_registers_are_taken_over, "registers", "answer with more registers than were asked for"),
        (no_tracking, "pages", "remove without blocking"),
        (no_tracking, "pages", "remove without tracking"),
        (no_tracking, "pages", "remove while the victim runs"),
        (any_page_is_free, "pages", "alias in two TDs"),
        (any_page_is_free, "pages", "control pages as memory"),
        (any_operation_state, "vCPUs", "add a vCPU after FINALIZE"),
        (any_operation_state, "measurement", "extend after FINALIZE"),
        (private_keyids_for_the_host, "memory", "read with the key"),
        (exceptions_are_posted, "vCPUs", "post exceptions"),
        (no_mac, "memory", "flip a bit in DRAM"),
        (no_mac, "memory", "swap two lines in DRAM"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_a_hole_in_the_wall_is_seen(
    hole: Callable[[pytest.MonkeyPatch], None], family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = named(family, name)
    assert outcome(each).refused
    hole(monkeypatch)
    result = carry_out(each)
    assert result.breach, result.attempts


def test_harm_without_a_single_attempt_that_shows_it_is_seen() -> None:
    """The victim is asked, whatever the attempts say: here its memory is changed behind everybody's back."""

    def quietly(bench: Bench) -> None:
        pa = bench.keyed(bench.victim.hpa())
        bench.machine.memory.write(pa, b"changed!", Requestor.TD)
        bench.note("nothing much", "refused", True)

    result = carry_out(Attack("test", "quiet", "not be seen", quietly))
    assert result.breach
    assert "the victim" in result.harm


def test_a_secret_that_was_copied_is_seen() -> None:
    def copy(bench: Bench) -> None:
        word = bench.victim.secret[3].to_bytes(8, "little")
        page = bench.page()
        bench.machine.memory.write(page + 40, word)
        bench.note("a copy", "refused", True)

    result = carry_out(Attack("test", "copy", "have it", copy))
    assert result.breach
    assert "in the hypervisor's memory" in result.harm


def test_an_attack_without_attempts_is_no_success_of_the_defence() -> None:
    assert not Result(Attack("test", "nothing", "", lambda _bench: None), ()).refused
    tried = Attempt("one", "refused", True)
    assert Result(Attack("test", "nothing", "", lambda _bench: None), (tried,)).refused
