"""Which tests run which line of the sources under mutation, and how long each takes."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest

from tools.mutants.mutate import Mutant
from tools.mutants.nursery import LIVES, Fork, Nursery
from tools.mutants.plant import constants

#: Where a file's nearest tests are; they are tried first.
HOME = {
    "src/swtdx/machine/memory": ("tests/memory",),
    "src/swtdx/module": ("tests/module", "tests/conformance"),
}

#: Processor seconds of a file whose tests are all taken if one of them is.
_SMALL = 3.0


class Watch:
    """Notes lines and processor time of each test; writes them to a file in the end."""

    def __init__(self, sources: Sequence[str], root: Path, to: Path) -> None:
        self._root, self._to = root, to
        self._seconds: dict[str, float] = {}
        self._coverage = coverage.Coverage(
            data_file=None,
            config_file=False,
            include=[f"{root}/{source}/*" for source in sources],
            branch=False,
        )

    def start(self) -> None:
        """From now on lines count."""
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._coverage.switch_context(item.nodeid)
        start = time.process_time()
        try:
            return (yield)
        finally:
            self._seconds[item.nodeid] = time.process_time() - start

    def result(self) -> bytes:
        """Write it down."""
        self._coverage.stop()
        data = self._coverage.get_data()
        number = {test: place for place, test in enumerate(self._seconds)}
        lines = {
            str(Path(file).relative_to(self._root)): {
                line: [number[context] for context in contexts if context]
                for line, contexts in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        self._to.write_text(json.dumps({"seconds": self._seconds, "lines": lines}))
        return b""


def digest(files: Iterable[Path]) -> str:
    """One for the content of files."""
    summary = hashlib.sha256()
    for file in sorted(files):
        summary.update(str(file).encode() + hashlib.sha256(file.read_bytes()).digest())
    return summary.hexdigest()


class CoverageMap:
    """Kept in a file; only what changed is measured anew."""

    def __init__(self, nursery: Nursery, sources: Sequence[str], root: Path, cache: Path) -> None:
        self._nursery, self._sources, self._root, self._cache = nursery, sources, root, cache
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._uses: dict[str, list[tuple[str, int]]] | None = None
        self._load()

    def _files(self) -> list[Path]:
        return [file for source in self._sources for file in (self._root / source).rglob("*.py")]

    def _load(self) -> None:
        now = digest(self._files())
        stored: dict[str, Any] = json.loads(self._cache.read_text()) if self._cache.exists() else {}
        parts: dict[str, Any] = stored["parts"] if stored.get("sources") == now else {}
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in self._nursery.items:
            by_file[test.partition("::")[0]].append(test)
        for file, tests in by_file.items():
            key = digest([self._root / file]) + hashlib.sha256("\n".join(tests).encode()).hexdigest()
            part = parts.get(file)
            if part is None or part["key"] != key:
                print(f"  what {file} covers ...", flush=True)
                part = parts[file] = {"key": key, **self._measure(tests)}
                self._cache.write_text(json.dumps({"sources": now, "parts": parts}))
            self.seconds.update(part["seconds"])
            tests = list(part["seconds"])
            for path, lines in part["lines"].items():
                for line, numbers in lines.items():
                    self._lines[path][int(line)].update(tests[number] for number in numbers)

    def _measure(self, tests: list[str]) -> dict[str, Any]:
        to = self._cache.with_suffix(".part")
        watch = Watch(self._sources, self._root, to)
        fork = Fork(self._nursery.in_fork(watch.start, tests, watch), 600, 1800)
        while (ended := fork.wait(5)) is None:
            pass
        if ended[0] != LIVES:
            raise RuntimeError(f"a test fails without any mutant: {ended[1].decode()}")
        result: dict[str, Any] = json.loads(to.read_text())
        to.unlink()
        return result

    # ------------------------------------------------------------------ questions
    def tests_for(self, mutant: Mutant) -> list[str]:
        """The tests that run what the mutant changes: near ones first, and fast ones."""
        if mutant.inside:
            found = set(self._lines[mutant.path][mutant.line])
            if not found:
                # Within a statement of several lines only some are seen.
                first, last = mutant.around
                lines = self._lines[mutant.path]
                found = set().union(*(lines[line] for line in range(first, last + 1)))
        else:
            found = set().union(*(self._lines[path][line] for path, line in self._used(mutant)))
        found |= self._whole_files(found)
        near = next(paths for source, paths in HOME.items() if mutant.path.startswith(source))
        return sorted(
            (test for test in found if test in self._nursery.items),
            key=lambda test: (not test.startswith(near), self.seconds[test]),
        )

    def _whole_files(self, found: set[str]) -> set[str]:
        """All tests of small files: what one does in a shared fixture, the others look at."""
        files = {test.partition("::")[0] for test in found}
        by_file: dict[str, list[str]] = defaultdict(list)
        for test in self._nursery.items:
            by_file[test.partition("::")[0]].append(test)
        small = [tests for file, tests in by_file.items() if file in files and self._cost(tests) < _SMALL]
        return {test for tests in small for test in tests}

    def _cost(self, tests: list[str]) -> float:
        return sum(self.seconds[test] for test in tests)

    def _used(self, mutant: Mutant) -> list[tuple[str, int]]:
        """Where the constant is used, directly or by other constants of its module."""
        if self._uses is None:
            self._uses = defaultdict(list)
            for file in self._files():
                path = str(file.relative_to(self._root))
                for node in ast.walk(ast.parse(file.read_text())):
                    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
                    if isinstance(name, str) and isinstance(node, ast.expr):
                        self._uses[name].append((path, node.lineno))
        names = constants(mutant)
        return [place for name in names for place in self._uses[name]]


def within(tests: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """The first tests that fit into ``budget`` processor seconds (at least one), file by file."""
    taken: list[str] = []
    for test in tests:
        if taken and budget < seconds[test]:
            continue
        budget -= seconds[test]
        taken.append(test)
    files: dict[str, list[str]] = defaultdict(list)
    for test in taken:
        files[test.partition("::")[0]].append(test)
    return [test for each in files.values() for test in each]
