"""A pytest session that runs chosen tests in forks of itself: once for each mutant.

All tests are collected and everything is imported once; nothing of a test has run in this process.  A fork
gets its mutant (:mod:`tools.mutants.plant`), runs its tests, and ends at the first that fails.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import pytest

#: Exit statuses of a fork.
LIVES, KILLED, UNUSABLE = 0, 1, 3
#: Packages that are imported whole before the first fork: tests import some of it late.
IMPORTED: Final = ("swtdx.module", "swtdx.machine.memory", "swtdx.machine.engine.scripted", "swtdx.proof")
_ADDRESS_SPACE: Final = 6 << 30


@dataclass(frozen=True, slots=True)
class Ended:
    """How a fork ended: ``status``, the test that ended it, processor seconds, and what it wrote."""

    status: str
    by: str
    seconds: float


class Fork:
    """A child process with a pipe from it."""

    def __init__(self, work: Callable[[int], NoReturn], processor_seconds: float, seconds: float) -> None:
        self.said, writer = os.pipe()
        self._deadline = time.monotonic() + seconds
        self.pid = os.fork()
        if not self.pid:
            os.close(self.said)
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            limit = int(time.process_time() + processor_seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_DATA, (_ADDRESS_SPACE, _ADDRESS_SPACE))
            work(writer)
        os.close(writer)

    def wait(self, seconds: float) -> tuple[int, bytes, float] | None:
        """(status, what it wrote, processor seconds), or None if it is not at its end yet."""
        pidfd = os.pidfd_open(self.pid)
        try:
            ready = select.select([pidfd], [], [], seconds)[0]
            if not ready:
                if time.monotonic() < self._deadline:
                    return None
                os.kill(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        finally:
            os.close(pidfd)
        said = b""
        while part := os.read(self.said, 1 << 16):
            said += part
        os.close(self.said)
        return status, said, usage.ru_utime + usage.ru_stime


class Nursery:
    """The collected session.  ``items`` are its tests by id."""

    def __init__(self, session: pytest.Session) -> None:
        for package in IMPORTED:
            found = importlib.import_module(package)
            for each in pkgutil.walk_packages(found.__path__, package + "."):
                importlib.import_module(each.name)
        self.items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()

    def in_fork(
        self, before: Callable[[], None], tests: Sequence[str], watch: Any = None
    ) -> Callable[[int], NoReturn]:
        """What a fork does: ``before``, then the tests; it writes the name of the one that fails."""

        def work(writer: int) -> NoReturn:
            try:
                before()
            except BaseException as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
                os._exit(UNUSABLE)
            items = [self.items[test] for test in tests]
            if items:
                items[0].config.pluginmanager.register(_Judge(writer), "judge")
                if watch is not None:
                    items[0].config.pluginmanager.register(watch, "watch")
            try:
                for item, following in zip(items, [*items[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if watch is not None:
                    os.write(writer, watch.result())
            except BaseException as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
                os._exit(KILLED)
            os._exit(LIVES)

        return work


class _Judge:
    """Ends the process at the first failure."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self._writer, f"{report.nodeid}\n{report.longreprtext[-3000:]}".encode())
            os._exit(KILLED)


def collected(paths: Sequence[str], use: Callable[[Nursery], None]) -> int:
    """Collect the tests of ``paths`` and call ``use``; pytest's exit status."""

    class Loop:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            if session.testsfailed:
                raise session.Interrupted("the tests cannot be collected")
            use(Nursery(session))
            return True

    options = ["-q", "-q", "-p", "no:cacheprovider", "-p", "no:terminalreporter", "--capture=no",
               "-m", "not qemu and not boot and not network and not slow"]  # fmt: skip
    return int(pytest.main([*options, *paths], plugins=[Loop()]))
