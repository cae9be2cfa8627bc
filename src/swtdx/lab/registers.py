"""Attacks on the victim's registers and controls, through the metadata that a host may access."""

from __future__ import annotations

from typing import Final

from swtdx.arch.exits import INTERRUPTION_VALID
from swtdx.arch.metadata import Context
from swtdx.arch.regs import NAMES, R9, R10
from swtdx.arch.units import MASK64
from swtdx.arch.x86 import FRAME_MASK
from swtdx.lab.attack import attack
from swtdx.lab.bench import Bench
from swtdx.vmm.processor import TIMER_VECTOR

FAMILY: Final = "registers"


def _write(bench: Bench, name: str, value: int, mask: int = MASK64) -> None:
    field = bench.field(Context.VP, name)
    bench.attempt("TDH.VP.WR", name, rcx=bench.victim.tdvpr, rdx=field, r8=value, r9=mask)


def _read(bench: Bench, name: str) -> None:
    bench.attempt("TDH.VP.RD", name, rcx=bench.victim.tdvpr, rdx=bench.field(Context.VP, name))


@attack(FAMILY, "make the victim go on at an address of the attacker's choice")
def change_RIP(bench: Bench) -> None:
    """TDH.VP.WR of RIP and RSP."""
    _write(bench, "GUEST_RIP", 0xBAD_C0DE)
    _write(bench, "GUEST_RSP", 0xBAD_57AC)


@attack(FAMILY, "know what the victim is computing with")
def read_the_registers(bench: Bench) -> None:
    """TDH.VP.RD of RIP and of every general-purpose register."""
    _read(bench, "GUEST_RIP")
    for name in NAMES:
        if name != "rsp":
            _read(bench, name.upper())


@attack(FAMILY, "put values into the victim's registers")
def write_the_registers(bench: Bench) -> None:
    """TDH.VP.WR of registers that no TDVMCALL has given to the hypervisor."""
    for name in ("RAX", "RBX", "R8"):
        _write(bench, name, 0x4141414141414141)


@attack(FAMILY, "put values into registers that the victim did not pass in its TDVMCALL")
def answer_with_more_registers_than_were_asked_for(bench: Bench) -> None:
    """The victim's TDVMCALL passed R10 to R15; the answer carries all of them."""
    kept = bench.cpu.gpr[10:16]
    bench.cpu.gpr[2:10] = [0x4242424242424242] * 8
    bench.cpu.gpr[10:16] = kept
    bench.victim.enter()
    bench.cpu.gpr[R10] = 0
    damage = bench.victim.damage
    bench.note(
        "TDH.VP.ENTER with RDX, RBX, RBP, RSI, RDI, R8 and R9 filled in",
        damage[0] if damage else "the victim has its own values in them",
        not damage,
    )


@attack(FAMILY, "see the registers when an interrupt throws the victim out")
def interrupt_and_look(bench: Bench) -> None:
    """A timer ends the victim's run in the middle of a computation."""
    bench.cpu.host.arm_timer(bench.machine.tsc() + 20_000, TIMER_VECTOR)
    rax = bench.victim.enter()
    seen = bench.cpu.gpr[1:]
    # R9 is the exit's interruption information: the hypervisor's own vector.
    seen[R9 - 1] ^= INTERRUPTION_VALID | TIMER_VECTOR
    empty = not any(seen)
    bench.note(
        "external interrupt while the secret is in RBX, RBP, RSI, RDI, R8 and R9",
        "every register of the hypervisor is zero, but for its own vector"
        if empty
        else f"registers {[hex(v) for v in seen]}",
        rax == 1 and empty,
    )


@attack(FAMILY, "turn the victim into a debug TD, which the host may look into")
def switch_DEBUG_on(bench: Bench) -> None:
    """TDH.MNG.WR of ATTRIBUTES."""
    field = bench.field(Context.TD, "ATTRIBUTES")
    bench.attempt("TDH.MNG.WR", "ATTRIBUTES.DEBUG", rcx=bench.tdr, rdx=field, r8=1, r9=1)


@attack(FAMILY, "give the victim another Secure EPT, or another key")
def change_EPTP_and_HKID(bench: Bench) -> None:
    """TDH.VP.WR of VMCS fields that hold the walls up."""
    _write(bench, "EPTP", bench.page() | 0x1E)
    _write(bench, "HKID", 0)


@attack(FAMILY, "have the processor read the victim's own page as its shared EPT")
def shared_EPT_in_private_memory(bench: Bench) -> None:
    """TDH.VP.WR of SHARED_EPTP with an address that carries the victim's HKID."""
    _write(bench, "SHARED_EPTP", bench.keyed(bench.victim.hpa()), FRAME_MASK)
