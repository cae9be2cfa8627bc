"""Random machine code in a guest: whatever it does ends in a VM exit of its own.

    python -m tests.machine.hostile --programs 100000 --seed 1

runs as many as you like (a test runs a few hundred).  A failure prints the command that shows it again.
"""

from __future__ import annotations

import argparse
import collections
import random
import struct
import sys
import time
from typing import Any, Final

from swtdx.arch import vmcs as f
from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM
from swtdx.machine.vmx import exit as reason
from tests.machine.guests import GUEST, HKID, MIB, TO_LONG_MODE, Guest, build_machine, long_mode_tables

#: Starts of instructions in which a processor does something of its own: system registers, segments, the
#: FPU, far transfers, string I/O, prefixes of instructions that it may not have.
STARTS: Final = tuple(
    bytes.fromhex(code)
    for code in (
        "0f01", "0f00", "0fae", "0fc7", "0f", "660f38", "f20f", "f30f", "c4", "c5", "660f3a", "0f20", "0f22",
        "62", "d9", "db", "df", "8e", "cf", "cb", "ff", "9a", "f0", "f3a4", "6c", "6e", "cd", "f1", "0f30",
        "0f32", "0f05", "0f34", "0f0d", "0f18", "0fc3", "8f", "ea", "0fa2", "f4", "cc",
    )
)  # fmt: skip
DEBUG_STARTS: Final = (b"\x0f\x21", b"\x0f\x23")
FLAGS: Final = (0, 0, 0x100, 0x200, 0x40000, 0x10000, 0x4000, 0x20000)
VALUES: Final = (
    0x5000, 0x5FF8, 0x7000, 0x100000, 0, 1, (1 << 64) - 1, 0xC0000080, 0xFEE00000, 0x402, 0xF0402, 0x20402,
    0xF0192, 0x80300, 0x2400,
)  # fmt: skip
CODE: Final = 0x2000
#: What a program may have written over: code, data, stack, and page tables.
PAGES: Final = (*range(0x1000, 0x9000, 0x1000), *range(0x100000, 0x103000, 0x1000))
#: Cycles that a program may take.
PATIENCE: Final = 60_000_000
BYSTANDER: Final = TO_LONG_MODE + "1: movq rax, xmm7; add rsi, rax; mov rdi, dr2; mov r9, dr7; cpuid; jmp 1b"
_ORIGIN: Final = 32 * MIB


class Bystander:
    """A guest on the same processor that must not notice anything."""

    def __init__(self, machine: Machine) -> None:
        guest = Guest(machine, BYSTANDER, origin=_ORIGIN)
        long_mode_tables(guest)
        self.guest = guest
        self.turns = 0
        image = bytearray(guest.vmcs.context.read_xstate())
        struct.pack_into("<Q", image, 160 + 7 * 16, 3)
        struct.pack_into("<Q", image, 512, 3)
        guest.vmcs.context.write_xstate(bytes(image))
        guest.vmcs.context.write_dr(2, 0x77777)

    def is_well(self) -> None:
        """Let it run to its next exit, and look.

        Raises:
            AssertionError: it is not as it was.
        """
        guest = self.guest
        guest.vmx.load(guest.vmcs.pa)
        out = guest.run()
        self.turns += 1
        context = guest.vmcs.context
        assert out.reason == reason.CPUID, f"the bystander left for reason {out.reason}"
        found = [context.gpr[number] for number in (6, 7, 9)]
        assert found == [3 * self.turns, 0x77777, 0x400], f"the bystander has {found}"
        guest.skip()


class Hostile:
    """Programs for one guest.  ``bits``: 64, or 32 with paging off; ``debug``: debug registers, too."""

    def __init__(self, seed: int, bits: int, *, debug: bool) -> None:
        self.seed, self.bits, self.debug = seed, bits, debug
        self.exits: collections.Counter[int] = collections.Counter()
        self.machine = build_machine("qemu")
        self.bystander = Bystander(self.machine)
        self.guest = Guest(self.machine, (TO_LONG_MODE if bits == 64 else "") + "hlt")
        if bits == 64:
            long_mode_tables(self.guest)
        self.guest.vmcs.write(f.EXCEPTION_BITMAP, 0xFFFFFFFF)
        assert self.guest.run().reason == reason.HLT
        self._fields = self._state()
        self._xstate = self.guest.vmcs.context.read_xstate()
        self._memory = {gpa: self.guest.read(gpa, 4096) for gpa in PAGES}

    def _state(self) -> list[tuple[int, int]]:
        return [(each, self.guest.vmcs.read(each)) for each in f.NAMES if f.is_guest_state(each)]

    def _restore(self) -> None:
        """The guest as it was before its first program, whatever the last one did."""
        guest = self.guest
        guest.vmx.load(guest.vmcs.pa)
        vmcs, context = guest.vmcs, guest.vmcs.context
        context.withdraw()
        vmcs.write(f.ENTRY_INTERRUPTION_INFO, 0)
        for encoding, value in self._fields:
            vmcs.write(encoding, value)
        context.write_xstate(self._xstate)
        context.xcr0 = 1
        for number in range(4):
            context.write_dr(number, 0)
        for gpa, content in self._memory.items():
            if guest.read(gpa, len(content)) != content:
                # As another TD's page would arrive.
                self.machine.memory.direct_store(GUEST + gpa | HKID << 46, content, SEAM)

    def program(self, number: int) -> tuple[bytes, int, list[int]]:
        """Code, RFLAGS and registers of one program."""
        rng = random.Random(f"{self.seed}/{self.bits}/{self.debug}/{number}")
        starts = STARTS + DEBUG_STARTS * 6 if self.debug else STARTS
        code = b""
        for _ in range(rng.randrange(1, 6 if self.debug else 4)):
            if rng.random() < 0.8:
                code += rng.choice(starts) + rng.randbytes(rng.randrange(1, 9))
            else:
                code += rng.randbytes(8)
        values = [
            rng.choice((*VALUES, rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(64)))
            for _ in range(16)
        ]
        values[4] = 0x8000
        return code + b"\xf4" * 16, 2 | rng.choice(FLAGS), values

    def run(self, number: int) -> int:
        """Run one program to its VM exit; the reason."""
        code, flags, values = self.program(number)
        self._restore()
        guest, lp = self.guest, self.guest.lp
        guest.write(CODE, code)
        context = guest.vmcs.context
        context.rip, context.rflags = CODE, flags
        for register, value in enumerate(values):
            context.gpr[register] = value
        lp.arm_timer(self.machine.tsc() + PATIENCE, 0x40)
        out = guest.run()
        lp.arm_timer(None, 0)
        lp.pending.clear()
        self.exits[out.reason] += 1
        if number % 8 == 0:
            self.bystander.is_well()
        return out.reason

    def close(self) -> None:
        """Switch the machine off."""
        self.machine.close()


def soak(hostile: Hostile, first: int, count: int, seconds: float | None = None) -> int:
    """Run programs ``first .. first + count - 1``; how many there was time for.

    Raises:
        AssertionError: one of them did not end as it should.
    """
    end = None if seconds is None else time.monotonic() + seconds
    for number in range(first, first + count):
        if end is not None and time.monotonic() > end:
            return number - first
        try:
            hostile.run(number)
        except BaseException as error:
            code = hostile.program(number)[0].hex()
            again = (
                f"--seed {hostile.seed} --bits {hostile.bits} {'--debug ' * hostile.debug}--first {number}"
            )
            raise AssertionError(
                f"{type(error).__name__}: {error}\ncode: {code}\n"
                f"again: python -m tests.machine.hostile {again} --programs 1"
            ) from error
    return count


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a program did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bits", type=int, choices=(32, 64), default=64)
    parser.add_argument("--debug", action="store_true", help="accesses to debug registers, too")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    chosen: Any = parser.parse_args(arguments)
    hostile = Hostile(chosen.seed, chosen.bits, debug=chosen.debug)
    started = time.monotonic()
    try:
        done = soak(hostile, chosen.first, chosen.programs, chosen.seconds)
    except AssertionError as failed:
        print(failed, file=sys.stderr)
        return 1
    finally:
        hostile.close()
    took = time.monotonic() - started
    print(f"{done} programs from {chosen.first} in {took:.0f} s; exits by reason: {dict(hostile.exits)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
