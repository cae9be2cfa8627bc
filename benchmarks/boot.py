"""What it costs to boot Linux as a TD: against the same kernel and initrd in a plain VM on the same QEMU.

Run as ``python -m benchmarks.boot``; ``--pairs N`` for more than five, ``--json`` prints the figures for
programs. The exit status is 1 if the promise of issue 2 is broken: from the start of the command to the
first word of userspace at most 1.2 times as long, the median of pairs that take turns.

Both sides are whole commands: ``swtdx run --exec`` with its interpreter, machine, firmware, SEAM loader and
TDX Module, and ``qemu-system-x86_64 -accel tcg -cpu max``; both use one virtual CPU, 512 MiB, the same
command line and a virtio console. One more boot is watched from inside to see where the time goes.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.plain_vm import plain_vm
from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED, Guest
from swtdx.guests.initramfs import Exec, default_cmdline

PROMISED_RATIO = 1.2
PAIRS = 5
MEMORY_MIB = 512
WORD = "userspace-is-here"
JOB = Exec(f"echo {WORD}")
#: Longest boot in seconds.
PATIENCE = 120
SAMPLE_SECONDS = 0.004


@dataclass
class Boots:
    """Seconds from start to userspace of each pair, and the TD's summaries."""

    td: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    summaries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """TD to plain, pair by pair."""
        return [ours / theirs for ours, theirs in zip(self.td, self.plain, strict=True)]


def until_word(command: list[str]) -> float:
    """Seconds from the start of ``command`` until it prints WORD; lets it end in order.

    Raises:
        RuntimeError: it never does.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    killer = threading.Timer(PATIENCE, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        seen = b""
        while WORD.encode() not in seen:
            data = process.stdout.read1(4096)  # type: ignore[attr-defined]
            if not data:
                raise RuntimeError(f"{command[0]} ended without reaching userspace: {seen[-500:]!r}")
            seen += data
        seconds = time.perf_counter() - started
        process.stdout.read()
        process.wait()
        return seconds
    finally:
        killer.cancel()
        process.kill()
        process.wait()


def td_command(guest: Guest, summary: Path) -> list[str]:
    """The TD as a user boots it."""
    return [
        sys.executable, "-m", "swtdx.cli.main", "run", "--guest", guest.version, "--memory", f"{MEMORY_MIB}M",
        "--json", str(summary), "--exec", JOB.command,
    ]  # fmt: skip


def in_turns(pairs: int, ours: list[str], theirs: list[str], summary: Path) -> Boots:
    """Boot a TD, which writes ``summary``, and a plain VM in turn; who goes first changes with every pair."""
    boots = Boots()
    sides = [(boots.td, ours), (boots.plain, theirs)]
    for number in range(pairs):
        for times, command in sides if number % 2 == 0 else reversed(sides):
            times.append(until_word(command))
        boots.summaries.append(json.loads(summary.read_text()))
        print(
            f"pair {number + 1}: TD {boots.td[-1]:.2f} s, plain VM {boots.plain[-1]:.2f} s, "
            f"ratio {boots.ratios[-1]:.3f}",
            file=sys.stderr,
            flush=True,
        )
    return boots


def measure(guest: Guest, pairs: int, folder: Path) -> Boots:
    """Boot both, in turn."""
    initrd, summary = folder / "initrd", folder / "summary.json"
    initrd.write_bytes(guest.initramfs(JOB))
    return in_turns(pairs, td_command(guest, summary), plain_vm(guest, initrd, JOB, MEMORY_MIB), summary)


# ------------------------------------------------------------------ where the time goes
def room(frame: FrameType | None) -> str:
    """Which part of the house a thread is in: the innermost of our frames."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("swtdx."):
            if name.endswith("engine.qemu.engine") and frame.f_code.co_name in ("_command", "_sleep"):
                return "guest code (in QEMU, and the way there and back)"
            parts = name.split(".")
            return ".".join(parts[1:3] if parts[1] == "machine" else parts[1:2])
        frame = frame.f_back
    return "interpreter"


def watch(guest: Guest) -> dict[str, float]:
    """Boot once in this process and look every few milliseconds where it is: shares of build and run."""
    # Here, for the other side must not pay for it.
    from swtdx.platform import Platform, platform_config
    from swtdx.vmm.command_io import CommandIo
    from swtdx.vmm.launch import LaunchConfig, launch

    seen: Counter[str] = Counter()

    # A signal, not a thread: a thread would mostly look when this one waits.
    def sample(_number: int, frame: FrameType | None) -> None:
        seen[room(frame)] += 1

    with Platform.boot(platform_config(MEMORY_MIB << 20, 1, None, b"benchmark")) as platform:
        config = LaunchConfig(
            guest.kernel_image(),
            guest.initramfs(JOB),
            default_cmdline(JOB),
            memory=MEMORY_MIB << 20,
            command=CommandIo(JOB.marker_token, lambda _data: None),
            teardown=False,
        )
        signal.signal(signal.SIGALRM, sample)
        signal.setitimer(signal.ITIMER_REAL, SAMPLE_SECONDS, SAMPLE_SECONDS)
        try:
            launch(platform.host, config)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    total = sum(seen.values())
    return {name: count / total for name, count in seen.most_common()}


# ------------------------------------------------------------------ the report
def medians(summaries: list[dict[str, Any]], key: str) -> dict[str, float]:
    """The median of each number in ``key`` of the summaries, the largest first."""
    names = {name for summary in summaries for name in summary[key]}
    found = {name: statistics.median(summary[key].get(name, 0) for summary in summaries) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def report(boots: Boots, ratio: float, shares: dict[str, float]) -> None:
    """Print everything for people."""
    summaries = boots.summaries
    print(f"start to userspace: TD {statistics.median(boots.td):.2f} s, "
          f"plain VM {statistics.median(boots.plain):.2f} s (medians of {len(boots.td)})")  # fmt: skip
    print(f"median ratio {ratio:.3f} (promised: at most {PROMISED_RATIO})")
    phases = medians(summaries, "phases")
    before = statistics.median(
        summary["total_seconds"] - sum(summary["phases"].values()) for summary in summaries
    )
    print("\nphases, to power-off:")
    print(f"  {'interpreter, machine, firmware':<40}{before:8.3f} s")
    for name, seconds in phases.items():
        print(f"  {name:<40}{seconds:8.3f} s")
    print("\nwhere the hypervisor's thread is:")
    for name, share in shares.items():
        print(f"  {name:<50}{share:7.1%}")
    for title, key in (("TD exits", "exits"), ("TDVMCALLs", "tdvmcalls"), ("SEAMCALLs", "seamcalls")):
        print(f"\n{title}:")
        for name, count in medians(summaries, key).items():
            print(f"  {name:<40}{count:8.0f}")


def main() -> int:
    """Measure, print, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"boots of each side (default: {PAIRS})")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    guest = fetch_guest(TESTED)
    with tempfile.TemporaryDirectory() as folder:
        boots = measure(guest, max(1, options.pairs), Path(folder))
    ratio = statistics.median(boots.ratios)
    shares = watch(guest)
    promise = Promise(
        2, "Linux to userspace as a TD, against a plain VM", ratio, PROMISED_RATIO, "x", at_most=True
    )
    kept = promise.kept
    if options.json:
        figures = {
            "kernel": guest.version,
            "td_s": boots.td,
            "plain_s": boots.plain,
            "ratios": boots.ratios,
            "ratio": ratio,
            "shares": shares,
            **{key: medians(boots.summaries, key) for key in ("phases", "exits", "tdvmcalls", "seamcalls")},
        }
        print(json.dumps(figures | {"promises": [promise.figures()], "kept": kept}, indent=2))
        return 0 if kept else 1
    report(boots, ratio, shares)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
