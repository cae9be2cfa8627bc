"""Exits a second: from a program in a Linux TD, answered by the module, and by the hypervisor by way of #VE.

Run as ``python -m benchmarks.exits``; ``--json`` prints the figures for programs. The exit status is 1 if a
promise of issue 10 is broken: 60,000 exits a second that the module answers (CPUID of a leaf that it
virtualises), 15,000 round trips #VE, TDG.VP.VEINFO.GET, TDVMCALL and back (CPUID 0x40000000).

For comparison, in the same run: what the engine does with nothing above it, an exit of a guest without paging
and back, and its smallest command. A round trip by #VE is three exits and a TD
entry, and the guest's handler runs on a TLB that QEMU has emptied three times.

The program is a few bytes of machine code; the seconds are those between words that it prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import time
from typing import Any

from tests.machine.guests import CODE, BareGuest, build_machine

from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED, Guest
from swtdx.guests.initramfs import Exec, default_cmdline
from swtdx.machine.engine.qemu.engine import QemuEngine
from swtdx.platform import Platform, platform_config
from swtdx.vmm.command_io import CommandIo
from swtdx.vmm.launch import LaunchConfig, launch

PROMISED_MODULE = 60_000
PROMISED_VE = 15_000
ROUNDS = 3
MODULE_EXITS = 60_000
VE_TRIPS = 15_000
BARE_EXITS = 50_000
#: A leaf that the module answers, and one for which it raises #VE and Linux asks the hypervisor.
MODULE_LEAF = 0
VE_LEAF = 0x4000_0000
_LOAD = 0x400000
#: What the program prints before, between and behind its loops.
MARKS = "<[{"


def program() -> bytes:
    """An ELF file for x86-64 Linux: for each mark print it, the loops in between, and exit(0)."""
    code = bytearray()

    def write(mark: str) -> None:
        code.extend(b"\x68" + mark.encode() + b"\n\0\0")  # push mark, newline
        code.extend(b"\x6a\x01\x58\x6a\x01\x5f\x48\x89\xe6\x6a\x02\x5a\x0f\x05")  # write(1, rsp, 2)

    def loop(leaf: int, count: int) -> None:
        code.extend(b"\x41\xbc" + struct.pack("<I", count))  # mov r12d, count
        code.extend(
            b"\xb8" + struct.pack("<I", leaf) + b"\x31\xc9\x0f\xa2"
        )  # mov eax, leaf; xor ecx, ecx; cpuid
        code.extend(b"\x41\xff\xcc\x75\xf2")  # dec r12d; jnz to the mov

    for _ in range(ROUNDS):
        write(MARKS[0])
        loop(MODULE_LEAF, MODULE_EXITS)
        write(MARKS[1])
        loop(VE_LEAF, VE_TRIPS)
        write(MARKS[2])
    code.extend(b"\x6a\x3c\x58\x31\xff\x0f\x05")  # exit(0)
    start = _LOAD + 64 + 56
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 64 + 56 + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD, _LOAD, size, size, 4096) + bytes(code)


def command() -> str:
    """Shell words that write the program down and run it."""
    octal = "".join(f"\\{byte:03o}" for byte in program())
    return f"printf '{octal}' > /exits; chmod 700 /exits; /exits"


class Clock:
    """Notes when each mark arrives."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def write(self, data: bytes) -> None:
        """Look for marks."""
        now = time.perf_counter()
        self.seen.extend((character, now) for character in data.decode("latin-1") if character in MARKS)


def in_linux(guest: Guest) -> tuple[list[float], list[float]]:
    """Exits a second that the module answers, and round trips by #VE, of each round."""
    clock = Clock()
    job = Exec(command())
    with Platform.boot(platform_config(512 << 20, 1, None, b"benchmark")) as platform:
        config = LaunchConfig(
            guest.kernel_image(),
            guest.initramfs(job),
            default_cmdline(job),
            memory=512 << 20,
            command=CommandIo(job.marker_token, clock.write),
            teardown=False,
        )
        result = launch(platform.host, config)
    marks = clock.seen[-3 * ROUNDS :]
    if [mark for mark, _ in marks] != list(MARKS * ROUNDS):
        raise RuntimeError(f"the guest's program has not printed what it was to: {clock.seen}, {result}")
    times = [seconds for _, seconds in marks]
    module = [MODULE_EXITS / (times[n + 1] - times[n]) for n in range(0, len(times), 3)]
    ve = [VE_TRIPS / (times[n + 2] - times[n + 1]) for n in range(0, len(times), 3)]
    return module, ve


def bare() -> tuple[float, float]:
    """Exits a second of the engine alone, and pings of its stub."""
    with build_machine("qemu") as machine:
        engine = machine.engine
        assert isinstance(engine, QemuEngine)
        guest = BareGuest(machine)
        guest.write(CODE, b"\x0f\xa2\xeb\xfc")  # cpuid; jmp to it
        guest.run()
        context, space, run = guest.vmcs.context, guest.vmcs.space, engine.run
        best = 0.0
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(BARE_EXITS):
                context.rip += 2
                run(0, context, space, None)
                context.rip = CODE
            best = max(best, BARE_EXITS / (time.perf_counter() - started))
        probe = engine.cpuid
        started = time.perf_counter()
        for _ in range(BARE_EXITS):
            probe(0)
        return best, BARE_EXITS / (time.perf_counter() - started)


def main() -> int:
    """Measure, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    bare_exits, probes = bare()
    module, ve = in_linux(fetch_guest(TESTED))
    promises = [
        Promise(10, "exits that the module answers", statistics.median(module), PROMISED_MODULE, "/s"),
        Promise(10, "#VE, TDVMCALL and back", statistics.median(ve), PROMISED_VE, "/s"),
    ]
    kept = all(promise.kept for promise in promises)
    if options.json:
        figures: dict[str, Any] = {"bare_exits": bare_exits, "probes": probes, "module": module, "ve": ve}
        figures["promises"] = [each.figures() for each in promises]
        print(json.dumps(figures | {"kept": kept}, indent=2))
        return 0 if kept else 1
    print(f"{'engine alone, its smallest command':<38}{probes:8,.0f}/s")
    print(f"{'engine alone, exit and back':<38}{bare_exits:8,.0f}/s")
    for promise, rates in zip(promises, (module, ve), strict=True):
        print(
            f"{promise.what:<38}{promise.measured:8,.0f}/s (of {', '.join(f'{rate:,.0f}' for rate in rates)};"
            f" {promise.measured / bare_exits:.0%} of the engine alone; promised {promise.promised:,.0f})"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
