"""What a warm start takes: a command in a TD that goes on from a file, against one in a TD that boots.

Run as ``python -m benchmarks.warm``; ``--starts N`` for more or fewer than 20, ``--json`` prints the figures
for programs. The exit status is 1 if a promise of issue 15 is broken: from the start of ``swtdx run --from``
to the first word that the command prints, the interpreter included, less than 0.6 s in the median; and 8 TDs
that go on from one file at once take less than twice the memory of one, and what they have changed.

Memory is what the kernel shares out among those who map it (Pss), of Python and QEMU together; what was
changed is the part of that which is in no file (Pss_Dirty).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.boot import WORD, until_word
from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED

PROMISED_SECONDS = 0.6
STARTS = 20
COLD = 3
AT_ONCE = 8
MEMORY_MIB = 512


def command(*more: str) -> list[str]:
    """A run that prints WORD."""
    return [sys.executable, "-m", "swtdx.cli.main", "run", "--no-stdin", *more, "--exec", f"echo {WORD}"]


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(child) for child in children)]


def memory(pids: list[int]) -> tuple[int, int]:
    """(bytes in all, bytes that are in no file) of these processes, as the kernel shares them out."""
    whole = dirty = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Pss":
                whole += int(rest.split()[0]) * 1024
            elif name == "Pss_Dirty":
                dirty += int(rest.split()[0]) * 1024
    return whole, dirty


def held(file: Path, count: int) -> tuple[int, int]:
    """The memory of ``count`` TDs that go on from ``file`` at once, and each runs a command."""
    processes = [
        subprocess.Popen(
            [*command("--from", str(file))[:-1], f"echo {WORD}; exec sleep 1000"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        return memory([pid for process in processes for pid in family(process.pid)])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def main() -> int:
    """Measure, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(prog="benchmarks.warm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    guest = fetch_guest(TESTED)
    of_guest = ("--guest", guest.version, "--memory", f"{MEMORY_MIB}M")
    with tempfile.TemporaryDirectory(prefix="swtdx-warm-") as folder:
        file = Path(folder) / "td"
        run = [sys.executable, "-m", "swtdx.cli.main", "run", *of_guest]
        subprocess.run([*run, "--snapshot-to", str(file)], stdin=subprocess.DEVNULL, check=True)
        warm = [until_word(command("--from", str(file))) for _ in range(options.starts)]
        cold = [until_word(command(*of_guest)) for _ in range(COLD)]
        one, _ = held(file, 1)
        many, changed = held(file, AT_ONCE)
        size = file.stat().st_blocks * 512
    seconds, boot = statistics.median(warm), statistics.median(cold)
    shared = (many - changed) / one
    promises = [
        Promise(15, "warm start to the first word", seconds, PROMISED_SECONDS, "s", at_most=True),
        Promise(15, f"memory of {AT_ONCE}, less what they changed, to one's", shared, 2, "", at_most=True),
    ]
    figures: dict[str, Any] = {
        "warm_seconds": [round(one, 3) for one in warm],
        "cold_seconds": [round(one, 3) for one in cold],
        "warm": round(seconds, 3),
        "cold": round(boot, 3),
        "ratio": round(boot / seconds, 1),
        "memory_of_one": one,
        "memory_of_many": many,
        "changed_by_many": changed,
        "file": size,
        "promises": [promise.figures() for promise in promises],
        "kept": all(promise.kept for promise in promises),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(f"warm  {seconds:.3f} s (median of {len(warm)}; {min(warm):.3f} to {max(warm):.3f})")
        print(f"cold  {boot:.3f} s (median of {len(cold)})")
        print(f"ratio {boot / seconds:.1f}")
        print(f"one TD {one >> 20} MiB; {AT_ONCE} at once {many >> 20} MiB, of which {changed >> 20} changed")
        print(f"the file {size >> 20} MiB")
    return 0 if figures["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
