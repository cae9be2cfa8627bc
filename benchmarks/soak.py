"""Many boots with different seeds: each must reach userspace and end as it was told to.

Run as ``python -m benchmarks.soak [N]`` (20 by default, as issue 2 promises); ``--json`` prints the figures
for programs. The exit status is 1 if one of the boots fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED

BOOTS = 20
PATIENCE = 150
#: A status that nothing else gives, so that reaching userspace cannot be mistaken.
STATUS = 42


def boot(version: str, seed: str) -> tuple[float, str]:
    """Seconds it took, and what went wrong (empty if nothing did)."""
    command = [
        sys.executable, "-m", "swtdx.cli.main", "run", "--guest", version, "--seed", seed,
        "--timeout", str(PATIENCE), "--exec", f"grep -c tdx_guest /proc/cpuinfo; exit {STATUS}",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    seconds = time.perf_counter() - started
    good = done.returncode == STATUS and done.stdout == "1\n" and not done.stderr
    return seconds, "" if good else f"status {done.returncode}: {done.stdout!r} {done.stderr.strip()!r}"


def main() -> int:
    """Boot, print, and say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("boots", type=int, nargs="?", default=BOOTS, help=f"how many (default: {BOOTS})")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    version = fetch_guest(TESTED).version
    times: list[float] = []
    failures: dict[str, str] = {}
    for number in range(options.boots):
        seed = f"soak {number}"
        seconds, failure = boot(version, seed)
        times.append(seconds)
        if failure:
            failures[seed] = failure
        print(f"{seed}: {seconds:.2f} s {failure}", file=sys.stderr, flush=True)
    good = (options.boots - len(failures)) / options.boots
    promise = Promise(2, f"of {options.boots} boots reach userspace", good, 1.0, "%")
    figures: dict[str, Any] = {
        "kernel": version,
        "boots": options.boots,
        "failures": failures,
        "seconds": {"least": min(times), "median": statistics.median(times), "most": max(times)},
    }
    if options.json:
        print(json.dumps(figures | {"promises": [promise.figures()], "kept": promise.kept}, indent=2))
    else:
        print(f"{options.boots - len(failures)} of {options.boots} boots of {version} reached userspace")
        print(f"seconds: {min(times):.2f} to {max(times):.2f}, median {statistics.median(times):.2f}")
    return 0 if promise.kept else 1


if __name__ == "__main__":
    sys.exit(main())
