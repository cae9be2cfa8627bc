"""What users do to guests without meaning harm: out of memory, a fork bomb, 200 MB of output, six at once.

Run as ``python -m benchmarks.hardship``; ``--json`` prints the figures for programs. Each must end by itself
with the right status and output. The exit status is 1 if one does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.promise import Promise
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import TESTED

PATIENCE = 240
MB = 1_000_000
AT_ONCE = 6
#: What a shell says of a program that SIGKILL ended.
KILLED = 128 + 9


def start(
    version: str, command: str, *options: str, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """A guest that runs ``command``."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "swtdx.cli.main", "run", "--guest", version, "--timeout", str(PATIENCE),
            *options, "--exec", command,
        ],
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[bytes], status: int, output: bytes, data: bytes | None = None) -> str:
    """What was not as it should be; empty if all was."""
    out, err = process.communicate(data, timeout=2 * PATIENCE)
    if process.returncode != status:
        return f"status {process.returncode}, not {status}: {err[-200:].decode('utf-8', 'replace')}"
    return "" if out == output else f"output {out[:100]!r} ... ({len(out)} bytes)"


def out_of_memory(version: str) -> str:
    """A program takes more than there is: the guest's kernel ends it, and nothing else."""
    return ended(start(version, "tail /dev/zero; echo $?; exit 3"), 3, b"%d\n" % KILLED)


def fork_bomb(version: str) -> str:
    """It goes on when its parent has ended; the command's end ends it."""
    return ended(start(version, "b() { b | b & }; b", "--log", "/dev/null"), 0, b"")


def much_output(version: str) -> str:
    """200 MB, to the last byte."""
    length = 200 * MB
    process = start(version, f"yes 0123456789abcdef | head -c {length}")
    assert process.stdout is not None
    assert process.stderr is not None
    digest, number = hashlib.sha256(), 0
    while part := process.stdout.read(1 << 20):
        digest.update(part)
        number += len(part)
    process.stderr.close()
    line = b"0123456789abcdef\n"
    expected = hashlib.sha256((line * (length // len(line) + 1))[:length])
    if process.wait(PATIENCE) or number != length:
        return f"status {process.returncode}, {number} bytes"
    return "" if digest.digest() == expected.digest() else "the bytes are others"


def much_input(version: str) -> str:
    """30 MB into it."""
    data = bytes(range(256)) * (30 * MB // 256)
    process = start(version, "sha256sum | cut -c1-64", stdin=subprocess.PIPE)
    return ended(process, 0, hashlib.sha256(data).hexdigest().encode() + b"\n", data)


def six_at_once(version: str) -> str:
    """Six runs of two vCPUs."""
    processes = [start(version, f"nproc; exit {number}", "--vcpus", "2") for number in range(AT_ONCE)]
    return "; ".join(filter(None, (ended(each, number, b"2\n") for number, each in enumerate(processes))))


TRIALS: dict[str, Callable[[str], str]] = {
    "a guest out of memory": out_of_memory,
    "a fork bomb": fork_bomb,
    "200 MB of output": much_output,
    "30 MB of input": much_input,
    "six runs at once": six_at_once,
}


def main() -> int:
    """Try all of them, print, and say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    version = fetch_guest(TESTED).version
    figures: dict[str, dict[str, Any]] = {}
    for name, trial in TRIALS.items():
        started = time.perf_counter()
        failure = trial(version)
        figures[name] = {"seconds": round(time.perf_counter() - started, 1), "failure": failure}
        print(
            f"{name}: {figures[name]['seconds']} s {failure or 'as it should be'}",
            file=sys.stderr,
            flush=True,
        )
    good = sum(not figure["failure"] for figure in figures.values()) / len(figures)
    promise = Promise(12, f"of {len(figures)} hardships end as they should", good, 1.0, "%")
    if options.json:
        shown = {"kernel": version, "trials": figures, "promises": [promise.figures()], "kept": promise.kept}
        print(json.dumps(shown, indent=2))
    return 0 if promise.kept else 1


if __name__ == "__main__":
    sys.exit(main())
