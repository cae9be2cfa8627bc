"""``python -m tools.mutants``: plant faults, run the tests that could see them, and say which live."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

# Before numpy is imported: a fork must not have threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# This checkout's, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from tools.mutants.coverage_map import CoverageMap, within
from tools.mutants.mutate import Mutant, chosen, mutants_of, usable
from tools.mutants.nursery import KILLED, LIVES, UNUSABLE, Ended, Fork, Nursery, collected
from tools.mutants.plant import Planter

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = ("src/swtdx/module", "src/swtdx/machine/memory")
TESTS: Final = (
    "tests/memory", "tests/module", "tests/conformance", "tests/machine/test_scripted_td.py",
    "tests/vmm/test_real_module.py", "tests/firmware/test_real_module.py",
)  # fmt: skip
#: What is known of mutants that live: why they are no faults.
EXPLAINED: Final = Path(__file__).with_name("survivors.toml")
CACHE: Final = ROOT / ".mutants"


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants in all (300)")
    parser.add_argument("--seed", default="1", help="which ones")
    parser.add_argument("--budget", type=float, default=6, help="processor seconds of tests for each (6)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (2)")
    parser.add_argument("--only", default="", help="those whose name or file holds this")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--living", action="store_true", help="again, those that lived and are not explained")
    parser.add_argument("--first", default="", help="tests whose id holds this come first")
    parser.add_argument("--stop-after", type=float, default=1e9, metavar="SECONDS", help="go on another time")
    parser.add_argument("--list", action="store_true", help="only say which mutants there are")
    parser.add_argument(
        "--all-of", metavar="TEXT", default="", help="instead: every mutant whose key holds this"
    )
    parser.add_argument("tests", nargs="*", default=list(TESTS), help="paths of tests")
    return parser.parse_args(argv)


def explained() -> dict[str, str]:
    """Reasons by key."""
    if not EXPLAINED.exists():
        return {}
    return {each["mutant"]: each["why"] for each in tomllib.loads(EXPLAINED.read_text()).get("survivor", [])}


class Run:
    """Results, kept in a file so that a run can be done in pieces."""

    def __init__(self, chosen_options: argparse.Namespace) -> None:
        self.options = chosen_options
        self._file = CACHE / "results.json"
        CACHE.mkdir(exist_ok=True)
        stored = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.results: dict[str, Ended] = {key: Ended(**each) for key, each in stored.items()}
        files = [file for source in SOURCES for file in sorted((ROOT / source).rglob("*.py"))]
        if chosen_options.all_of:
            self.mutants = [
                mutant
                for file in files
                for mutant in mutants_of(file, ROOT)
                if chosen_options.all_of in mutant.key and usable(mutant, file)
            ]
        else:
            self.mutants = chosen(files, ROOT, chosen_options.seed, chosen_options.count)

    def keep(self) -> None:
        """Write the results down."""
        text = json.dumps({key: asdict(each) for key, each in self.results.items()}, indent=1)
        self._file.write_text(text + "\n")

    def wanted(self) -> list[Mutant]:
        """Those that are still to be tried."""
        only = self.options.only
        reasons = explained()

        def is_wanted(mutant: Mutant) -> bool:
            result = self.results.get(mutant.key)
            if only:
                return only in mutant.short or only in mutant.key
            if self.options.again or result is None:
                return True
            lived = result.status not in ("killed", "time")
            return bool(self.options.living) and lived and mutant.key not in reasons

        return [mutant for mutant in self.mutants if is_wanted(mutant)]

    def all_in(self, nursery: Nursery) -> None:
        """Try each in a fork."""
        cover = CoverageMap(nursery, SOURCES, ROOT, CACHE / "coverage.json")
        planter = Planter(ROOT)
        start = time.monotonic()
        waiting, running = self.wanted(), dict[str, tuple[Fork, Mutant, str]]()
        while waiting or running:
            if time.monotonic() - start > self.options.stop_after:
                waiting = []
            while waiting and len(running) < self.options.jobs:
                mutant = waiting.pop(0)
                every = cover.tests_for(mutant)
                if self.options.first:
                    every.sort(key=lambda test: self.options.first not in test)
                tests = within(every, cover.seconds, self.options.budget)
                if not tests:
                    self._note(mutant, Ended("uncovered", "", 0))
                    continue
                expected = sum(cover.seconds[test] for test in tests)
                work = nursery.in_fork(partial(planter.plant, mutant), tests)
                fork = Fork(work, 3 * expected + 5, 40 * expected + 120)
                running[mutant.key] = fork, mutant, f"{len(tests)} of {len(every)} tests"
            for fork, mutant, how_many in list(running.values()):
                ended = fork.wait(0.05)
                if ended is not None:
                    del running[mutant.key]
                    self._note(mutant, _verdict(*ended, how_many))
        self.keep()

    def _note(self, mutant: Mutant, ended: Ended) -> None:
        self.results[mutant.key] = ended
        self.keep()
        print(
            f"{mutant.short} {ended.status:9} {ended.seconds:5.1f} s  {mutant.key}  [{ended.by}]", flush=True
        )

    def report(self) -> int:
        """What is known of all mutants; 1 if one lives without an explanation."""
        reasons = explained()
        tried = [(mutant, self.results[mutant.key]) for mutant in self.mutants if mutant.key in self.results]
        counts = Counter(ended.status for _, ended in tried)
        living = [mutant for mutant, ended in tried if ended.status not in ("killed", "time")]
        unexplained = [mutant for mutant in living if mutant.key not in reasons]
        for mutant in unexplained:
            print(f"LIVES {mutant.short} {mutant.path}:{mutant.line} {mutant.key.partition('::')[2]}")
        equivalent = len(living) - len(unexplained)
        print(f"{len(tried)} of {len(self.mutants)} mutants tried: {dict(counts)}")
        if tried:
            print(
                f"killed {len(tried) - len(living)} ({(len(tried) - len(living)) / len(tried):.1%}), "
                f"explained {equivalent}, unexplained {len(unexplained)}; "
                f"{sum(ended.seconds for _, ended in tried) / len(tried):.2f} s of processor time each"
            )
        return int(bool(unexplained) or len(tried) < len(self.mutants))


def _verdict(status: int, said: bytes, seconds: float, how_many: str) -> Ended:
    text = said.decode(errors="replace").partition("\n")[0]
    if os.WIFSIGNALED(status):
        return Ended(
            "time" if os.WTERMSIG(status) in (9, 24) else "killed", f"signal {os.WTERMSIG(status)}", seconds
        )
    names = {LIVES: "lives", KILLED: "killed", UNUSABLE: "unusable"}
    return Ended(names.get(os.waitstatus_to_exitcode(status), "killed"), text or how_many, seconds)


def main() -> int:
    """Run what the command line asks for."""
    chosen_options = options()
    os.chdir(ROOT)
    run = Run(chosen_options)
    if chosen_options.list:
        for mutant in run.mutants:
            print(mutant.short, mutant.key)
        return 0
    if run.wanted():
        status = collected(chosen_options.tests, run.all_in)
        if status not in (0, 5):
            print(f"pytest ended with status {status}", file=sys.stderr)
            return 2
    return run.report()


if __name__ == "__main__":
    sys.exit(main())
