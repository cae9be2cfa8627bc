"""What SEAMCALLs cost: a field of a TD read over and over, and a TD built page by page.

Run as ``python -m benchmarks.seamcalls``; ``--json`` prints the figures for programs. The exit status is 1
if a promise of issue 4 is broken: at least 20,000 TDH.MNG.RD a second, and at least 17,000 leaves a second
while a TD is built (TDH.MEM.PAGE.ADD, then TDH.MR.EXTEND of each of the page's 16 chunks), on one core.

All goes the way that the hypervisor's calls go: :mod:`swtdx.vmm` executes SEAMCALL on a processor of a
machine whose firmware has loaded the real module, with one logical processor and no guest. What counts is
processor time of the whole process, in the best of several rounds. A plain loop of Python takes turns with
them: what a leaf costs in its additions tells slow code from a slow computer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

from benchmarks.promise import Promise
from swtdx.arch.metadata import Context, by_name
from swtdx.machine.machine import MachineConfig
from swtdx.measure.mrtd import MrtdStream, Region
from swtdx.platform import Platform, PlatformConfig
from swtdx.vmm import fields
from swtdx.vmm import seamcalls as sc
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

PAGE = 4096
BASE = 1 << 20
PAGES = 256
READS = 10_000
ROUNDS = 5
ADDITIONS = 1_000_000
PROMISED_READS = 20_000
PROMISED_BUILDING = 17_000
MRTD = by_name(Context.TD, "MRTD").id


def spent(action: Callable[[], None]) -> float:
    """Seconds of processor time, of all threads of this process, that ``action`` takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def additions() -> None:
    """The reference: what any Python program of this computer is made of."""
    total = 0
    for number in range(ADDITIONS):
        total += number


def read_fields(hypervisor: Hypervisor) -> Callable[[], None]:
    """An action that executes ``READS`` TDH.MNG.RD."""
    td = Td.build(hypervisor, TdConfig(), [])
    cpu, tdr = td.cpu, td.root
    expected = (0, td.clock.multiplier)

    def action() -> None:
        for _ in range(READS):
            assert sc.tdh_mng_rd(cpu, tdr, fields.TSC_MULTIPLIER) == expected

    return action


class Building:
    """TDs of the same measured pages, built again and again."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        data = os.urandom(PAGES * PAGE)
        self.pages = [InitialPage(BASE + at, data[at : at + PAGE]) for at in range(0, len(data), PAGE)]
        stream = MrtdStream()
        stream.add(Region(BASE, len(data), data, measured=True))
        self.mrtd = stream.digest()

    def round(self) -> float:
        """Leaves a second while the pages are added and measured, which is most of building a TD."""
        hypervisor = self.hypervisor
        td = Td(hypervisor, TdConfig(), hypervisor.unique_name("benchmark"), hypervisor.processors[0])
        td.create()
        td.add_vcpus(0, [td.cpu])
        before = hypervisor.stats
        seconds = spent(lambda: td.add_pages(self.pages))
        calls = {name: count - before.get(name, 0) for name, count in hypervisor.stats.items()}
        assert (calls["TDH.MEM.PAGE.ADD"], calls["TDH.MR.EXTEND"]) == (PAGES, 16 * PAGES), calls
        td.finalize()
        assert mrtd(td) == self.mrtd
        td.teardown()
        return sum(calls.values()) / seconds


def mrtd(td: Td) -> bytes:
    """MRTD as the module holds it, read by TDH.MNG.RD."""
    words = []
    for element in range(6):
        status, value = sc.tdh_mng_rd(td.cpu, td.root, MRTD + element)
        assert status == 0
        words.append(value.to_bytes(8, "little"))
    return b"".join(words)


def measure() -> dict[str, float]:
    """Leaves a second of both, and additions a second of plain Python."""
    with Platform.boot(
        PlatformConfig(machine=MachineConfig(engine="scripted", processors_per_package=1))
    ) as platform:
        hypervisor = Hypervisor(platform.host)
        reading, building = read_fields(hypervisor), Building(hypervisor)
        best = {"reads": 0.0, "building": 0.0, "additions": 0.0}
        for _ in range(ROUNDS):
            for name, rate in (
                ("additions", ADDITIONS / spent(additions)),
                ("reads", READS / spent(reading)),
                ("building", building.round()),
            ):
                best[name] = max(best[name], rate)
    return best


def main() -> int:
    """Measure, print, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = measure()
    reads, building, plain = figures["reads"], figures["building"], figures["additions"]
    promises = [
        Promise(4, "TDH.MNG.RD a second on one core", reads, PROMISED_READS, "/s"),
        Promise(4, "leaves a second while a TD is built", building, PROMISED_BUILDING, "/s"),
    ]
    kept = all(promise.kept for promise in promises)
    if options.json:
        print(
            json.dumps(figures | {"promises": [each.figures() for each in promises], "kept": kept}, indent=2)
        )
        return 0 if kept else 1
    print(f"additions in a loop of Python {plain / 1e6:8.1f} million/s")
    print(f"TDH.MNG.RD                    {reads:8,.0f} /s   (promised: at least {PROMISED_READS:,})")
    print(f"  one costs as much as        {plain / reads:8,.0f} additions")
    print(f"leaves while building a TD    {building:8,.0f} /s   (promised: at least {PROMISED_BUILDING:,})")
    print(f"  one costs as much as        {plain / building:8,.0f} additions")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
