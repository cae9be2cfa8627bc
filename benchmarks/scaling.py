"""More vCPUs, more TDs, a busy host: what Linux takes as a TD, against plain VMs on the same QEMU.

Run as ``python -m benchmarks.scaling`` on a machine with nothing else to do; ``--pairs N`` for more than
three, ``--only vcpus`` (or ``six``, ``loaded``) for a part, ``--guest VERSION`` for another kernel;
``--json`` prints the figures for programs. The exit status is 1 if a promise of issue 10 is broken: on two
cores

* from the start of a command to its end, with 2 and 4 vCPUs at most 1.5 times as long as a plain VM with as
  many, with 8 at most twice; with one, what issue 2 promises of the way to userspace, 1.2 times;
* six at once at most 1.7 times the plain VMs' time, and their processor time;
* under 30 busy loops, each of a session of its own, at most twice as long; no soft lockup in the guest's log,
  and its clock right to a second.

Both sides are whole commands: ``swtdx run --exec`` and ``qemu-system-x86_64 -accel tcg -cpu max`` with the
same kernel, initrd and command line. They take turns, and the median of the pairs' ratios counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.plain_vm import plain_vm
from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED, Guest
from swtdx.guests.initramfs import Exec

PARTS = ("vcpus", "six", "loaded")
PAIRS = 3
#: By number of vCPUs.
PROMISED = {1: 1.2, 2: 1.5, 4: 1.5, 8: 2.0}
AT_ONCE = 6
PROMISED_AT_ONCE = 1.7
LOOPS = 30
PROMISED_LOADED = 2.0
#: Seconds that the guest's clock may be wrong by.
CLOCK_ERROR = 1.0
MEMORY_MIB = 512
PATIENCE = 600
#: Its last line: words to know it by, soft lockups in the kernel's log, seconds since 1970.
JOB = Exec("echo guest: $(dmesg | grep -ci 'soft lockup') $(date +%s)")
#: It ends when whoever started it has gone.
_LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
_LINE = re.compile(rb"guest: (\d+) (\d+)")


@dataclass(slots=True)
class Took:
    """What some commands took together: seconds, processor seconds, and what their guests said."""

    seconds: float
    processor: float
    lockups: int
    clock_error: float


def td_command(guest: Guest, vcpus: int) -> list[str]:
    """A TD as a user boots it."""
    return [
        sys.executable, "-m", "swtdx.cli.main", "run", "--guest", guest.version, "--memory", f"{MEMORY_MIB}M",
        "--vcpus", str(vcpus), "--exec", JOB.command,
    ]  # fmt: skip


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _first_line(running: subprocess.Popen[bytes]) -> tuple[bytes, float]:
    """The first line of output that is what was asked for, all before it, and when it came: Unix seconds."""
    assert running.stdout is not None
    patience = threading.Timer(PATIENCE, running.kill)
    patience.start()
    text = b""
    try:
        for line in running.stdout:
            text += line
            if _LINE.search(line):
                break
        return text, time.time()
    finally:
        patience.cancel()


def patiently(command: list[str], count: int) -> Took:
    """Like :func:`run`; a plain VM is given three tries.

    Under heavy load Linux sometimes finds that QEMU's timer does not interrupt it, and panics.
    """
    for left in (2, 1):
        try:
            return run(command, count)
        except RuntimeError:
            if command[0] == sys.executable:
                raise
            print(f"the plain VM has failed; tries left: {left}", file=sys.stderr, flush=True)
    return run(command, count)


def run(command: list[str], count: int = 1) -> Took:
    """Run ``count`` of ``command`` side by side, to their ends.

    Raises:
        RuntimeError: one of them did not say what it was to.
    """
    before, started = _processor_time(), time.perf_counter()
    running = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(count)
    ]
    lockups, wrong = 0, 0.0
    try:
        for each in running:
            first, arrived = _first_line(each) if count == 1 else (b"", 0.0)
            output, errors = each.communicate(timeout=PATIENCE)
            said = _LINE.search(first + output)
            if said is None:
                raise RuntimeError(
                    f"{command[0]}: status {each.returncode}, {output[-300:]!r} {errors[-500:]!r}"
                )
            lockups += int(said[1])
            if count == 1:
                # The guest's seconds are whole ones.
                wrong = max(0.0, abs(arrived - int(said[2]) - 0.5) - 0.5)
    finally:
        for each in running:
            each.kill()
            each.wait()
    return Took(time.perf_counter() - started, _processor_time() - before, lockups, wrong)


def pairs(guest: Guest, initrd: Path, vcpus: int, number: int, count: int = 1) -> list[tuple[Took, Took]]:
    """(TD, plain VM), in turns; who goes first changes with every pair."""
    found: list[tuple[Took, Took]] = []
    for turn in range(number):
        commands = [td_command(guest, vcpus), plain_vm(guest, initrd, JOB, MEMORY_MIB, vcpus)]
        took = [patiently(command, count) for command in (commands if turn % 2 == 0 else commands[::-1])]
        ours, theirs = took if turn % 2 == 0 else took[::-1]
        found.append((ours, theirs))
        print(
            f"{count} with {vcpus} vCPUs: TD {ours.seconds:.2f} s ({ours.processor:.1f} s of processors), "
            f"VM {theirs.seconds:.2f} s ({theirs.processor:.1f} s), {ours.seconds / theirs.seconds:.2f}",
            file=sys.stderr,
            flush=True,
        )
    return found


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """``count`` processes that do nothing else, each in a session of its own."""
    loops = [subprocess.Popen([sys.executable, "-Sc", _LOOP], start_new_session=True) for _ in range(count)]
    try:
        time.sleep(1)
        yield
    finally:
        for loop in loops:
            os.kill(loop.pid, signal.SIGKILL)
            loop.wait()


def ratio(found: list[tuple[Took, Took]]) -> float:
    """The median of TD to plain VM, in seconds."""
    return statistics.median(ours.seconds / theirs.seconds for ours, theirs in found)


def measure(
    parts: list[str], guest: Guest, number: int, initrd: Path
) -> tuple[list[Promise], dict[str, Any]]:
    """What was promised and measured, and all figures."""
    promises: list[Promise] = []
    figures: dict[str, Any] = {}

    def keep(name: str, found: list[tuple[Took, Took]]) -> None:
        figures[name] = [{"td": asdict(ours), "plain": asdict(theirs)} for ours, theirs in found]

    if "vcpus" in parts:
        for vcpus, promised in PROMISED.items():
            found = pairs(guest, initrd, vcpus, number)
            keep(f"vcpus_{vcpus}", found)
            what = f"Linux with {vcpus} vCPUs, against a plain VM"
            promises.append(Promise(10, what, ratio(found), promised, "x", at_most=True))
    if "six" in parts:
        found = pairs(guest, initrd, 1, max(1, number - 1), AT_ONCE)
        keep("six", found)
        processor = statistics.median(ours.processor / theirs.processor for ours, theirs in found)
        for what, measured in (("in time", ratio(found)), ("in processor time", processor)):
            promises.append(
                Promise(10, f"{AT_ONCE} TDs at once, {what}", measured, PROMISED_AT_ONCE, "x", at_most=True)
            )
    if "loaded" in parts:
        with busy_loops(LOOPS):
            found = pairs(guest, initrd, 1, number)
        keep("loaded", found)
        lockups = sum(ours.lockups for ours, _ in found)
        clock = max(ours.clock_error for ours, _ in found)
        promises += [
            Promise(10, f"under {LOOPS} busy loops", ratio(found), PROMISED_LOADED, "x", at_most=True),
            Promise(10, "soft lockups there", lockups, 0, at_most=True),
            Promise(10, "the guest's clock there is wrong by", clock, CLOCK_ERROR, "s", at_most=True),
        ]
    return promises, figures


def main() -> int:
    """Measure, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"runs of each side (default: {PAIRS})")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone; may be repeated")
    parser.add_argument(
        "--guest", default=TESTED, help="a kernel of `swtdx guest fetch` (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    guest = fetch_guest(options.guest)
    with tempfile.TemporaryDirectory() as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes(guest.initramfs(JOB))
        promises, figures = measure(options.only or list(PARTS), guest, max(1, options.pairs), initrd)
    kept = all(promise.kept for promise in promises)
    if options.json:
        figures |= {"kernel": guest.version, "promises": [each.figures() for each in promises], "kept": kept}
        print(json.dumps(figures, indent=2))
        return 0 if kept else 1
    for each in promises:
        print(f"{each.what:<50}{each.measured:6.2f} {each.unit} (promised: at most {each.promised:g})")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
