"""The pytest plugin: fixtures for TDX platforms, TDs, quotes and a hostile hypervisor.

It comes with swtdx and loads nothing of it until a test uses one of its fixtures.  ``docs/pytest.md``
describes them; ``-p no:swtdx`` leaves the plugin out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from swtdx.api.attesting import CollateralService
    from swtdx.api.linux import LinuxTd
    from swtdx.api.platform import Platform
    from swtdx.testing.evidence import Evidence
    from swtdx.testing.hostile import Hostile
    from swtdx.testing.makers import LinuxMaker, QuoteMaker, ScriptedMaker

#: Fixtures that start QEMU.
_QEMU: Final = frozenset({"tdx_linux", "tdx_linux_maker", "tdx_hostile_linux"})
_EVIDENCE: Final = pytest.StashKey["Evidence"]()


# ---------------------------------------------------------------------- options and marks
def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("swtdx", "TDX in software (swtdx)")
    group.addoption(
        "--tdx-require", action="store_true",
        help="what needs QEMU fails where QEMU is missing; otherwise it is skipped",
    )  # fmt: skip
    group.addoption("--tdx-offline", action="store_true", help="skip tests marked tdx_network")
    group.addoption("--tdx-cold", action="store_true", help="boot each Linux TD instead of restoring it")
    group.addoption("--tdx-trace", action="store_true", help="trace Linux TDs, too (much slower)")
    group.addoption(
        "--tdx-artifacts", metavar="DIR",
        help="write the console, the exits and the trace of the TDs of failed tests into DIR",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """The marks."""
    for line in (
        "tdx_qemu: needs QEMU; skipped where it is missing. Tests that use a Linux TD have it already",
        "tdx_network: needs the network; skipped with --tdx-offline",
        "tdx_td(memory, vcpus, append, kernel, initrd, version, debug, add): the TD of `tdx_linux`",
    ):
        config.addinivalue_line("markers", line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts QEMU, so that ``-m "not tdx_qemu"`` leaves it out; skip what is not wanted."""
    offline = config.getoption("--tdx-offline")
    for item in items:
        if not _QEMU.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("tdx_qemu")
        if offline and item.get_closest_marker("tdx_network") is not None:
            item.add_marker(pytest.mark.skip(reason="needs the network (--tdx-offline)"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs QEMU where there is none."""
    if item.get_closest_marker("tdx_qemu") is None:
        return
    from swtdx.machine.engine.protocol import EngineError
    from swtdx.machine.engine.qemu.process import find_qemu

    try:
        find_qemu()
    except EngineError as error:
        if item.config.getoption("--tdx-require"):
            pytest.fail(f"{error}", pytrace=False)
        pytest.skip(f"{error}")


# ---------------------------------------------------------------------- what a failing test shows
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add consoles, exits and traces of a failed test's TDs to its report."""
    outcome = yield
    evidence = item.stash.get(_EVIDENCE, None)
    if evidence is None:
        return
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        evidence.add_to(report, item.config.getoption("--tdx-artifacts"), item.nodeid)


@pytest.fixture
def tdx_evidence(request: pytest.FixtureRequest) -> Evidence:
    """What is shown when the test fails: ``watch(td)`` adds a TD that the test has made itself."""
    from swtdx.testing.evidence import Evidence

    return request.node.stash.setdefault(_EVIDENCE, Evidence())  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- without QEMU
@pytest.fixture
def tdx_platform(tdx_evidence: Evidence) -> Iterator[Platform]:
    """A fresh platform with the scripted engine, traced; see ``swtdx.Platform``."""
    from swtdx.api.platform import Platform

    with Platform("scripted", cpus=2) as platform:
        tdx_evidence.trace(platform)
        yield platform


@pytest.fixture
def tdx_scripted(tdx_platform: Platform, tdx_evidence: Evidence) -> ScriptedMaker:
    """Makes scripted TDs: ``td = tdx_scripted(program, ...)``, arguments as ``platform.scripted``."""
    from swtdx.testing.makers import ScriptedMaker

    return ScriptedMaker(tdx_platform, tdx_evidence)


@pytest.fixture
def tdx_hostile(tdx_platform: Platform, tdx_evidence: Evidence) -> Hostile:
    """A hostile hypervisor over scripted TDs: hooks at every exit, SEAMCALLs, memory."""
    from swtdx.testing.hostile import Hostile

    return Hostile(tdx_platform, tdx_evidence)


@pytest.fixture
def tdx_quote() -> QuoteMaker:
    """Makes quotes without a machine: ``quote = tdx_quote(b"nonce", mrtd=...)``."""
    from swtdx.testing.makers import QuoteMaker

    return QuoteMaker()


@pytest.fixture
def tdx_collateral(request: pytest.FixtureRequest) -> Iterator[CollateralService]:
    """A collateral service that runs, for the quotes of ``tdx_quote`` and of the TDs here.

    By indirect parametrization it is that of a scenario: ``parametrize("tdx_collateral", ["pck-revoked"],
    indirect=True)``.
    """
    from swtdx.api.attesting import CollateralService

    with CollateralService(scenario=getattr(request, "param", None)) as service:
        yield service


# ---------------------------------------------------------------------- with QEMU
@pytest.fixture(scope="session")
def tdx_snapshots(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Where Linux TDs that have booted are kept for the session."""
    from swtdx.testing.snapshots import Snapshots

    base = tmp_path_factory.getbasetemp()
    shared = "PYTEST_XDIST_WORKER" in os.environ
    with Snapshots(base.parent if shared else base, shared=shared) as snapshots:
        yield None if request.config.getoption("--tdx-cold") else snapshots


@pytest.fixture
def tdx_linux_maker(
    request: pytest.FixtureRequest, tdx_snapshots: Any, tdx_evidence: Evidence
) -> Iterator[LinuxMaker]:
    """Makes Linux TDs: ``td = tdx_linux_maker(memory=..., ...)``, arguments as ``platform.linux``."""
    from swtdx.testing.makers import LinuxMaker

    with LinuxMaker(tdx_snapshots, tdx_evidence, trace=request.config.getoption("--tdx-trace")) as maker:
        yield maker


@pytest.fixture
def tdx_linux(request: pytest.FixtureRequest, tdx_linux_maker: LinuxMaker) -> LinuxTd:
    """A Linux TD of the test's own: booted once in the session, and restored for each test.

    The mark ``tdx_td`` says what it is, with arguments as ``platform.linux``.
    """
    mark = request.node.get_closest_marker("tdx_td")
    return tdx_linux_maker(**({} if mark is None else mark.kwargs))


@pytest.fixture
def tdx_hostile_linux(tdx_linux: LinuxTd, tdx_evidence: Evidence) -> Hostile:
    """A hostile hypervisor over a Linux TD, which is its ``td``."""
    from swtdx.testing.hostile import Hostile

    return Hostile(tdx_linux.platform, tdx_evidence, tdx_linux)
