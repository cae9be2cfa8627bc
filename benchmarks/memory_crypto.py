"""What memory costs: sealing on flush against raw OpenSSL, an empty terabyte, a warm page.

Run as ``python -m benchmarks.memory_crypto``; ``--json`` prints the figures for programs. The exit
status is 1 if a promise of issue 3 is broken: sealing 64 MiB (AES-XTS-128, MAC and owner bits, from
frames to DRAM) reaches at least 40 % of raw OpenSSL, and 1 TiB opens in less than 50 MB.

The raw side encrypts the same bytes, from the same frames, into a buffer of the same size that is mapped
already (``update_into``, nothing allocated), 16 MiB a call, because a data unit of XTS has at most 2^20
blocks. Both sides alternate and count their best of several rounds, in processor time of the whole
process, so that a busy machine does not take from the longer of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.promise import Promise
from swtdx.machine.memory import Command, PhysicalMemory, ProgramResult
from swtdx.machine.memory.dram import Dram

SIZE = 64 << 20
UNIT = 16 << 20
BASE = 1 << 30
TD = 40
ROUNDS = 9
PROMISED_RATIO = 0.40
PROMISED_TERABYTE = 50e6

_EMPTY_TERABYTE = """
import os
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
from swtdx.machine.memory import PhysicalMemory
before = resident()
memory = PhysicalMemory([(0, 1 << 40)], bytes(32))
memory.write((1 << 40) - 8, bytes(8))
print(before, resident())
"""


def best(action: Callable[[], None], rounds: int = ROUNDS) -> float:
    """The shortest of ``rounds`` runs, in seconds of processor time."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def sealing() -> dict[str, float]:
    """Bytes per second of raw OpenSSL, and of flush and encryption through the memory."""
    memory = PhysicalMemory([(0, 2 << 30)], bytes(32))
    # With integrity, so that every line gets its MAC.
    result = memory.keys.program(TD, Command.SET_KEY_RANDOM, 2, seam=True)
    assert result is ProgramResult.SUCCESS
    first, end = BASE >> 12, BASE + SIZE >> 12
    data = os.urandom(SIZE)
    source, target = memory.frames[BASE : BASE + SIZE], memoryview(bytearray(SIZE + 16))
    key = algorithms.AES(os.urandom(32))

    def raw() -> None:
        for at in range(0, SIZE, UNIT):
            cipher = Cipher(key, modes.XTS((at // UNIT).to_bytes(16, "little")))
            cipher.encryptor().update_into(source[at : at + UNIT], target[at : at + UNIT + 16])

    def dirty() -> None:
        memory.direct_zero(memory.addresses.join(BASE, TD), SIZE)
        memory.acquire(BASE, SIZE, TD)
        memory.frames[BASE : BASE + SIZE] = data

    def seal() -> None:
        memory.wbinvd()
        with memory.lock:
            memory.cache.materialise(first, end)

    dirty()
    raw()
    cold = best(seal, 1)
    raw_times, seal_times = [], []
    for _ in range(ROUNDS):
        # The same lines again: DRAM is there already, as it is on a machine.
        memory.acquire(BASE, SIZE, TD)
        source[:] = data
        raw_times.append(best(raw, 1))
        seal_times.append(best(seal, 1))
    # That was no sham: every line has an owner bit, and comes back through all checks.
    assert Dram(memory).owners(BASE, SIZE) == SIZE // 64
    source[:] = bytes(SIZE)
    memory.acquire(BASE, SIZE, TD)
    assert source == data
    return {
        "raw": SIZE / min(raw_times),
        "sealed": SIZE / min(seal_times),
        "sealed_cold": SIZE / cold,
        "ratio": min(raw_times) / min(seal_times),
    }


def terabyte() -> int:
    """Bytes of resident memory that opening 1 TiB adds, in a fresh process."""
    run = subprocess.run([sys.executable, "-c", _EMPTY_TERABYTE], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    return after - before


def warm_calls() -> dict[str, float]:
    """Nanoseconds of calls on a page that is mapped already."""
    memory = PhysicalMemory([(0, 1 << 30)], bytes(32))
    memory.keys.program(TD, Command.SET_KEY_RANDOM, 2, seam=True)
    memory.direct_zero(memory.addresses.join(0x1000, TD), 4096)
    memory.map_page(0x1000, TD)
    memory.map_page(0x2000, 0)
    memory.acquire(0x20_0000, 0x20_0000, 0)
    calls: dict[str, Callable[[], object]] = {
        "map_page": lambda: memory.map_page(0x1000, TD),
        "read_u64": lambda: memory.read_u64(0x2000),
        "write_u64": lambda: memory.write_u64(0x2000, 5),
        "acquire_4k": lambda: memory.acquire(0x20_0000, 4096, 0),
        "acquire_2m": lambda: memory.acquire(0x20_0000, 0x20_0000, 0),
    }

    def many(call: Callable[[], object]) -> Callable[[], None]:
        def loop() -> None:
            for _ in range(10_000):
                call()

        return loop

    return {name: best(many(call), 3) * 1e5 for name, call in calls.items()}


def accepting() -> float:
    """Seconds to zero 512 MiB of untouched memory for a TD and hand it to the engine."""
    memory = PhysicalMemory([(0, 2 << 30)], bytes(32))
    memory.keys.program(TD, Command.SET_KEY_RANDOM, 2, seam=True)
    start = time.perf_counter()
    memory.direct_zero(memory.addresses.join(BASE, TD), 512 << 20)
    for at in range(BASE, BASE + (512 << 20), 2 << 20):
        memory.acquire(at, 2 << 20, TD)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    seal, memory, calls, accept = sealing(), terabyte(), warm_calls(), accepting()
    promises = [
        Promise(3, "sealing 64 MiB, against raw OpenSSL", seal["ratio"], PROMISED_RATIO, "%"),
        Promise(3, "memory of an empty TiB", memory / 1e6, PROMISED_TERABYTE / 1e6, "MB", at_most=True),
    ]
    kept = all(promise.kept for promise in promises)
    if options.json:
        figures = {"sealing": seal, "terabyte_bytes": memory, "calls_ns": calls, "accept_512m_s": accept}
        print(
            json.dumps(figures | {"promises": [each.figures() for each in promises], "kept": kept}, indent=2)
        )
        return 0 if kept else 1
    print(f"raw OpenSSL AES-XTS-128       {seal['raw'] / 1e9:6.2f} GB/s")
    print(f"flush, encrypt, MAC 64 MiB    {seal['sealed'] / 1e9:6.2f} GB/s")
    print(f"  ratio                       {seal['ratio']:6.0%}   (promised: at least {PROMISED_RATIO:.0%})")
    print(f"  the first time, DRAM empty  {seal['sealed_cold'] / 1e9:6.2f} GB/s")
    print(f"1 TiB opens in                {memory / 1e6:6.1f} MB   (promised: less than 50)")
    print(f"accept and map 512 MiB        {accept * 1e3:6.1f} ms")
    for name, nanoseconds in calls.items():
        print(f"warm {name:<24} {nanoseconds:6.0f} ns")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
