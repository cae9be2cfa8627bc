"""Many boots with different seeds: each must reach userspace and end as it was told to.

Run as ``python -m benchmarks.soak [N]`` (20 by default, as issue 2 promises); ``--json`` prints the figures
for programs. The exit status is 1 if one of the boots fails, or leaves a process of QEMU behind.

``--vcpus N`` gives each TD more of them; ``--beside`` boots two at once every second time; ``--load N`` lets
0 to N busy loops run beside a boot, another number each time (issue 10: 200 with 2 vCPUs and all that).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.promise import Promise
from benchmarks.scaling import busy_loops
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED

BOOTS = 20
PATIENCE = 150
#: A status that nothing else gives, so that reaching userspace cannot be mistaken.
STATUS = 42


def boot(version: str, seed: str, vcpus: int = 1) -> tuple[float, str]:
    """Seconds it took, and what went wrong (empty if nothing did)."""
    command = [
        sys.executable, "-m", "swtdx.cli.main", "run", "--guest", version, "--seed", seed,
        "--vcpus", str(vcpus), "--timeout", str(PATIENCE),
        "--exec", f"grep -c tdx_guest /proc/cpuinfo; exit {STATUS}",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    seconds = time.perf_counter() - started
    good = done.returncode == STATUS and done.stdout == f"{vcpus}\n" and not done.stderr
    return seconds, "" if good else f"status {done.returncode}: {done.stdout!r} {done.stderr.strip()!r}"


def boots(version: str, seed: str, options: argparse.Namespace, number: int) -> Iterator[tuple[float, str]]:
    """One boot, or two side by side, with as much load as it is its turn to have."""
    seeds = [seed, f"{seed} beside"] if options.beside and number % 2 else [seed]
    with busy_loops(number % (options.load + 1)), ThreadPoolExecutor(len(seeds)) as pool:
        yield from pool.map(lambda each: boot(version, each, options.vcpus), seeds)


def orphans() -> list[int]:
    """Processes of QEMU for an engine of swtdx whose owner is gone: they belong to process 1."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes()
            if words[1] == "1" and b"qemu-system" in command and b"swtdx" in command:
                found.append(int(status.parent.name))
    return found


def main() -> int:
    """Boot, print, and say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("boots", type=int, nargs="?", default=BOOTS, help=f"how many (default: {BOOTS})")
    parser.add_argument("--vcpus", type=int, default=1, help="of each TD (default: 1)")
    parser.add_argument("--beside", action="store_true", help="two TDs side by side every second time")
    parser.add_argument("--load", type=int, default=0, help="most busy loops beside a boot (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    version = fetch_guest(TESTED).version
    times: list[float] = []
    failures: dict[str, str] = {}
    for number in range(options.boots):
        seed = f"soak {number}"
        for seconds, failure in boots(version, seed, options, number):
            times.append(seconds)
            if failure:
                failures[seed] = failure
            print(f"{seed}: {seconds:.2f} s {failure}", file=sys.stderr, flush=True)
    left = orphans()
    if left:
        failures["afterwards"] = f"processes {left} of QEMU are left"
    good = (len(times) - len(failures)) / len(times)
    promise = Promise(2, f"of {len(times)} boots reach userspace", good, 1.0, "%")
    figures: dict[str, Any] = {
        "kernel": version,
        "boots": len(times),
        "failures": failures,
        "seconds": {"least": min(times), "median": statistics.median(times), "most": max(times)},
    }
    if options.json:
        print(json.dumps(figures | {"promises": [promise.figures()], "kept": promise.kept}, indent=2))
    else:
        print(f"{len(times) - len(failures)} of {len(times)} boots of {version} reached userspace")
        print(f"seconds: {min(times):.2f} to {max(times):.2f}, median {statistics.median(times):.2f}")
    return 0 if promise.kept else 1


if __name__ == "__main__":
    sys.exit(main())
