"""The pytest plugin, in a pytest of its own: what its fixtures give, and what it costs those who use none."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "swtdx.testing.plugin", "-p", "no:cacheprovider")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plugins but ours, whether swtdx is installed or not, and the tests' own cache of kernels."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


def run(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    """The result of a pytest over one file; warnings are errors there, too."""
    pytester.makepyfile(text)
    # pytester gives what it starts another home; the cache of kernels is in the environment.
    return pytester.runpytest_subprocess(*PLUGIN, "-W", "error", "--strict-markers", *arguments)


def test_a_suite_that_uses_none_of_it_loads_nothing(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import sys

        def test_nothing(request):
            ours = {name for name in sys.modules if name.startswith("swtdx")}
            assert ours == {"swtdx", "swtdx.__about__", "swtdx.testing", "swtdx.testing.plugin"}
            assert "numpy" not in sys.modules
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_entry_point_is_the_plugin() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"swtdx": "swtdx.testing.plugin"}


def test_fixtures_that_need_no_qemu(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run(
        pytester,
        """
        import pytest, swtdx
        from swtdx import script

        def guest(cpu):
            yield from script.accept(script.RAM)
            yield script.Write(script.RAM, 0x5EC2E7)
            return (yield from script.io_in(0x71))

        def test_platform(tdx_platform):
            assert tdx_platform.engine == "scripted"
            assert tdx_platform.describe()

        def test_scripted(tdx_scripted):
            td = tdx_scripted(guest)
            td.run()
            assert len(td.results) == 1

        def test_hostile(tdx_hostile):
            seen = []

            @tdx_hostile.on_exit
            def lie(exit):
                seen.append(exit.reason)
                if exit.port == 0x71:
                    exit.answer(r11=0xEE)

            td = tdx_hostile.scripted(guest)
            td.run()
            assert td.results == [0xEE]
            assert "EPT violation" in seen and "TDVMCALL" in seen
            assert tdx_hostile.refused("TDH.MEM.RD", rcx=script.RAM, rdx=td.tdr) == "TDX_TD_NON_DEBUG"
            with pytest.raises(AssertionError, match="was done"):
                tdx_hostile.refused("TDH.PHYMEM.PAGE.RDMD", rcx=td.tdr)
            with pytest.raises(AttributeError, match="tdx_hostile_linux"):
                tdx_hostile.td

        def test_quote_and_collateral(tdx_quote, tdx_collateral):
            verdict = swtdx.verify(
                tdx_quote(b"nonce"), tdx_collateral.collateral(), root=tdx_collateral.root,
                accept_simulated=True,
            )
            assert verdict.accepted

        @pytest.mark.parametrize("tdx_collateral", ["pck-revoked"], indirect=True)
        def test_scenario(tdx_collateral):
            assert not swtdx.verify(
                tdx_collateral.quote(), tdx_collateral.collateral(), root=tdx_collateral.root,
                accept_simulated=True, now=tdx_collateral.now,
            ).accepted
        """,
    )
    result.assert_outcomes(passed=5)


FAILING = """
    from swtdx import script

    def guest(cpu):
        for byte in b"the guest's last words":
            yield from script.io_out(0x3F8, byte)
        yield from script.tdcall("TDG.VP.INFO")

    def test_fails(tdx_scripted):
        td = tdx_scripted(guest)
        td.run()
        assert td.results == ["something else"]

    def test_passes(tdx_scripted):
        tdx_scripted(guest).run()
"""


def test_a_failing_test_shows_console_exits_and_trace(pytester: pytest.Pytester) -> None:
    result = run(pytester, FAILING, "--tdx-artifacts=out")
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    assert text.count("the guest's last words") == 1, "of the failed test alone"
    result.stdout.fnmatch_lines(
        [
            "*TD: console*", "the guest's last words", "*TD: last TD exits*",
            "vCPU 0: TDVMCALL Instruction.IO R12=0x1 R13=0x1 R14=0x3f8 R15=0x74",
            "*TD: end*", "the guest switched off", "*TDX trace*", "*TDCALL: TDG.VP.INFO*",
        ]
    )  # fmt: skip
    (folder,) = (pytester.path / "out").iterdir()
    assert "test_fails" in folder.name
    assert (folder / "console-1.txt").read_text() == "the guest's last words"
    events = [json.loads(line) for line in (folder / "trace-1.jsonl").read_text().splitlines()]
    assert any(event.get("name") == "TDG.VP.INFO" for event in events)


def test_what_a_guest_prints_does_not_reach_the_terminal_raw(pytester: pytest.Pytester) -> None:
    result = run(pytester, FAILING.replace("the guest's last words", r"\x1b[2J\x07evil"))
    assert "\x1b[2J" not in result.stdout.str()
    assert "evil" in result.stdout.str()


QEMU = """
    import pytest

    def test_linux(tdx_linux):
        assert tdx_linux.run("true").ok

    @pytest.mark.tdx_qemu
    def test_marked():
        pass

    @pytest.mark.tdx_network
    def test_network():
        pass

    def test_plain():
        pass
"""


def test_without_qemu(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    run(pytester, QEMU, "--tdx-offline").assert_outcomes(passed=1, skipped=3)
    run(pytester, QEMU, "-m", "not tdx_qemu").assert_outcomes(passed=2, deselected=2)
    result = run(pytester, QEMU, "--tdx-require")
    result.assert_outcomes(passed=2, errors=2)
    assert "Traceback" not in result.stdout.str()


def test_marks_and_options_are_documented(pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs/pytest.md").read_text()
    helped = pytester.runpytest_subprocess(*PLUGIN, "--help").stdout.str()
    marks = pytester.runpytest_subprocess(*PLUGIN, "--markers").stdout.str()
    fixtures = pytester.runpytest_subprocess(*PLUGIN, "--fixtures").stdout.str()
    for name in ("--tdx-require", "--tdx-offline", "--tdx-cold", "--tdx-trace", "--tdx-artifacts"):
        assert name in helped
        assert name in page
    for name in ("tdx_qemu", "tdx_network", "tdx_td"):
        assert f"@pytest.mark.{name}" in marks
        assert f"`{name}" in page
    for name in ("tdx_platform", "tdx_scripted", "tdx_hostile", "tdx_quote", "tdx_collateral", "tdx_linux",
                 "tdx_linux_maker", "tdx_hostile_linux", "tdx_evidence"):  # fmt: skip
        assert f"\n{name}" in fixtures
        assert f"`{name}`" in page


@pytest.mark.boot
def test_linux_tds_are_restored_and_each_test_has_its_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import os, time
        import pytest, swtdx

        numbers = set()

        @pytest.mark.parametrize("number", range(3))
        def test_its_own(tdx_linux, number):
            assert not tdx_linux.run("test -e /tmp/mine").ok
            tdx_linux.write("/tmp/mine", b"x")
            numbers.add(tdx_linux.run("cat /proc/sys/kernel/random/uuid").output)
            assert len(numbers) == number + 1
            assert abs(int(tdx_linux.run("date +%s").output) - time.time()) < 30

        def test_one_boot_only(tdx_snapshots, tdx_linux):
            assert len(tdx_snapshots._made) == 1

        def test_quote(tdx_linux):
            platform = tdx_linux.platform
            quote = tdx_linux.quote(b"nonce")
            assert swtdx.verify(
                quote, platform.collateral(), root=platform.root, accept_simulated=True
            ).accepted

        @pytest.mark.tdx_td(append="swtdx.word=1", vcpus=2)
        def test_marked(tdx_linux, tmp_path):
            assert "swtdx.word=1" in tdx_linux.run("cat /proc/cmdline; nproc").output
            (tmp_path / "f").write_text("there and back")
            tdx_linux.copy_to(tmp_path / "f", "/tmp/f")
            assert tdx_linux.copy_from("/tmp/f", tmp_path / "g").read_text() == "there and back"

        def test_hostile(tdx_hostile_linux):
            seen = []
            tdx_hostile_linux.on_exit(lambda exit: seen.append(exit.tdvmcall))
            tdx_hostile_linux.td.run("true", check=True)
            assert "#VE.RequestMMIO" in seen

        def test_fails(tdx_linux):
            tdx_linux.run("echo the last words >/dev/kmsg; echo c >/proc/sysrq-trigger")
        """,
        "--tdx-require",
    )
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["*TdEnded: the TD ended during*", "*TD: console*", "*TD: last TD exits*"])


@pytest.mark.boot
def test_the_documents_example(pytester: pytest.Pytester) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/pytest.md").read_text(), re.DOTALL)
    run(pytester, text, "--tdx-require").assert_outcomes(passed=2)


@pytest.mark.boot
def test_cold_and_traced(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_cold(tdx_linux):
            tdx_linux.run("uname -r", check=True)
            assert False
        """,
        "--tdx-cold", "--tdx-trace", "--tdx-artifacts=out",
    )  # fmt: skip
    result.assert_outcomes(failed=1)
    (trace,) = (pytester.path / "out").rglob("trace-1.jsonl")
    assert os.stat(trace).st_size > 10_000
