"""What it costs to boot Linux through OVMF as a TD: against the same firmware and kernel in a plain VM.

Run as ``python -m benchmarks.firmware``; ``--pairs N`` for more than three, ``--suite`` for the OVMF of
another release of Debian than trixie, ``--json`` prints the figures for programs. The exit status is 1 if the
promise of issue 13 is broken: from the start of the command to the first word of userspace at most 1.3 times
as long, the median of pairs that take turns.

Both sides are whole commands, as in :mod:`benchmarks.boot`; the plain VM is a q35 that gets the kernel by
``-kernel``, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.boot import JOB, MEMORY_MIB, Boots, in_turns, medians, td_command
from benchmarks.plain_vm import plain_vm
from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.firmware import fetch_firmware

PROMISED_RATIO = 1.3
PAIRS = 3


def measure(suite: str, pairs: int, folder: Path) -> Boots:
    """Boot both, in turn."""
    guest = fetch_guest()
    image = str(fetch_firmware(suite).image)
    initrd, summary = folder / "initrd", folder / "summary.json"
    initrd.write_bytes(guest.initramfs(JOB))
    ours = [*td_command(guest, summary), "--firmware", image]
    theirs = [*plain_vm(guest, initrd, JOB, MEMORY_MIB), "-machine", "q35", "-bios", image]
    return in_turns(pairs, ours, theirs, summary)


def main() -> int:
    """Measure, print, and say whether the promise holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"boots of each side (default: {PAIRS})")
    parser.add_argument("--suite", default="trixie", help="whose OVMF (default: trixie)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swtdx-benchmark-") as folder:
        boots = measure(options.suite, options.pairs, Path(folder))
    ratio = statistics.median(boots.ratios)
    promise = Promise(
        13,
        "OVMF and Linux to userspace as a TD, against a plain VM",
        ratio,
        PROMISED_RATIO,
        "x",
        at_most=True,
    )
    figures = {
        "suite": options.suite,
        "td_seconds": statistics.median(boots.td),
        "plain_seconds": statistics.median(boots.plain),
        "ratio": ratio,
        "promises": [promise.figures()],
        "kept": promise.kept,
        **{key: medians(boots.summaries, key) for key in ("phases", "exits", "tdvmcalls", "seamcalls")},
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(f"start to userspace through OVMF of {options.suite}: TD {figures['td_seconds']:.2f} s, "
              f"plain VM {figures['plain_seconds']:.2f} s (medians of {len(boots.td)})")  # fmt: skip
        print(f"median ratio {ratio:.3f} (promised: at most {PROMISED_RATIO})")
        for title in ("phases", "exits", "tdvmcalls", "seamcalls"):
            print(f"\n{title}:")
            for name, count in medians(boots.summaries, title).items():
                print(f"  {name:<40}{count:10.2f}")
    return 0 if promise.kept else 1


if __name__ == "__main__":
    sys.exit(main())
