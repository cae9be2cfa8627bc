"""``swtdx run`` up to the point where something starts, and from the point where it has ended."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
from pathlib import Path

import pytest

from swtdx.arch.features import MODULE_1_5_01, MODULES
from swtdx.cli import run_report
from swtdx.cli.main import main
from swtdx.cli.quote_service import ToldQuotes
from swtdx.guests.cache import Cache
from swtdx.guests.choice import OWN_INITRD_CMDLINE, TINY, Wishes, choose
from swtdx.guests.errors import FetchError, GuestError, NoTdxSupport
from swtdx.guests.initramfs import Demo, Exec, Shell, default_cmdline
from swtdx.machine.cpu.model import DEFAULT_MODEL, MODELS
from swtdx.platform import Platform, platform_config
from swtdx.vmm.result import EndReason, RunResult
from tests.cli.test_guest import NEW, OLD, cache, put
from tests.guests.bzimage import make_bzimage
from tests.guests.test_fetch import busybox

__all__ = ["cache"]  # a fixture

TDX, NO_TDX = "CONFIG_X86_64=y\nCONFIG_INTEL_TDX_GUEST=y\n", "CONFIG_X86_64=y\n"


def own_kernel(folder: Path, config: str = TDX, release: str = "6.6.6-own") -> Path:
    (folder / f"config-{release}").write_text(config)
    path = folder / f"vmlinuz-{release}"
    path.write_bytes(make_bzimage(version=release.encode()))
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--initrd", "x"], "--initrd goes with --kernel"),
        (["--kernel", "k", "--initrd", "x", "--demo"], "leave out --initrd"),
        (["--kernel", "k", "--initrd", "x", "--add", "/etc/hosts"], "--add goes with"),
        (["--get", "/x:y"], "--get goes with --exec"),
        (["--exec", "ls", "--get", "/x"], "a path in the guest, a colon"),
        (["--exec", "ls", "--add", "x:y"], "absolute path"),
        (["-n"], "--no-stdin goes with --exec"),
        (["--merge-stderr"], "--merge-stderr goes with --exec"),
        (["--mrconfigid", "00"], "is not 48 bytes"),
        (["--mrowner", "z" * 96], "is not 48 bytes"),
        (["--attributes", "debug,sgx"], "'sgx': give NAME"),
        (["--attributes", "pks=maybe"], "'pks=maybe'"),
        (["--kernel", "k", "--tiny"], "exclude each other"),
        (["--kernel", "k", "--guest", "6.12"], "exclude each other"),
        (["--tiny", "--exec", "ls"], "runs no commands"),
        (["--exec", "ls", "--demo"], "exclude each other"),
        (["--log", "x"], "--log goes with --exec"),
        (["--memory", "much"], "not a size"),
        (["--vcpus", "0"], "0 is not in the range"),
        (["--timeout", "0"], "0.0 is not in the range"),
        (["--model", "pentium"], "choose one of emerald-rapids, sapphire-rapids, sierra-forest"),
        (["--module", "1.0"], "choose one of 1.5.01, base"),
    ],
)
def test_options_that_mean_nothing(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_names_every_part_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"{DEFAULT_MODEL} (default)" in words
    assert all(name in words for name in MODELS.keys() | MODULES.keys())


def test_the_machine_is_what_was_asked_for() -> None:
    config = platform_config(256 << 20, 2, None, b"x", "emerald-rapids", MODULE_1_5_01)
    with Platform.boot(dataclasses.replace(config, start_engine=False)) as platform:
        assert platform.host.processors[1].cpuid(1)[0] == 0xC06F2
        assert platform.machine.seam.module.state.features == MODULE_1_5_01


# -- what boots -----------------------------------------------------------------------------------
def test_a_kernel_without_tdx_support_is_refused_by_name_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWTDX_QEMU", "/nonexistent/qemu")
    path = own_kernel(tmp_path, NO_TDX)
    assert main(["run", "--kernel", str(path), "--exec", "true"]) == run_report.NOT_STARTED
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert "6.6.6-own" in shown
    assert "CONFIG_INTEL_TDX_GUEST" in shown
    assert "qemu" not in shown.lower()


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(4000), os.urandom(2000)])
def test_what_is_no_kernel_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    assert main(["run", "--kernel", str(path)]) == run_report.NOT_STARTED
    assert capsys.readouterr().err.startswith(f"swtdx: {path} is not a Linux bzImage")


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
@pytest.mark.parametrize(
    ("option", "wanted"), [("kernel", "a bzImage"), ("initrd", "an initrd"), ("firmware", "a firmware image")]
)
def test_what_is_no_file_is_refused_at_once(
    option: str, wanted: str, kind: str, tmp_path: Path, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = {"device": Path("/dev/zero"), "pipe": tmp_path / "pipe", "folder": tmp_path}[kind]
    kernel = () if option == "kernel" else ("--kernel", str(own_kernel(tmp_path, TDX)))
    assert main(["run", f"--{option}", str(path), *kernel, "--exec", "true"]) == run_report.NOT_STARTED
    assert capsys.readouterr().err == f"swtdx: {path} is a {kind}; give the file of {wanted}\n"


@pytest.mark.parametrize("option", ["kernel", "initrd", "firmware"])
def test_a_file_that_is_too_large_to_be_that_is_not_read(
    option: str, tmp_path: Path, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(5 << 30)  # a hole
    kernel = () if option == "kernel" else ("--kernel", str(own_kernel(tmp_path, TDX)))
    assert main(["run", f"--{option}", str(tmp_path / "large"), *kernel]) == run_report.NOT_STARTED
    assert "large has 5368709120 bytes: that is too large for a" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "problem"), [("vmlinuz", "is damaged"), ("manifest.json", "is missing")])
def test_a_damaged_newest_kernel_is_not_replaced_by_an_older_one(
    file: str, problem: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (OLD, NEW):
        put(cache, version, busybox())
    damaged = cache.root / "guests" / f"linux-{NEW}" / file
    damaged.unlink()
    if problem == "is damaged":
        damaged.write_bytes(b"damaged")
    asked: list[str | None] = []

    def fetch(version: str | None, **_: object) -> None:
        asked.append(version)
        raise FetchError("no network")

    monkeypatch.setattr("swtdx.guests.fetch.fetch_guest", fetch)
    said: list[str] = []
    with pytest.raises(FetchError, match="no network"):
        choose(Wishes(), Exec("true"), "", said.append)
    assert asked == [NEW]
    assert f"{damaged} {problem}" in said[0]


def test_the_newest_cached_kernel_boots_unless_one_is_named(cache: Cache) -> None:
    for version in (OLD, NEW):
        put(cache, version, busybox())
    said: list[str] = []
    boot = choose(Wishes(append="a=b"), Demo(), "", said.append)
    assert boot.kernel is not None
    assert boot.kernel.release == boot.label == NEW
    assert boot.cmdline == default_cmdline(Demo()) + " a=b"
    assert choose(Wishes(version="6.9"), Demo(), "", said.append).label == OLD
    assert choose(Wishes(cmdline="only this"), Demo(), "", said.append).cmdline == "only this"
    assert said == []


@pytest.mark.parametrize("newer", ["6.13.1-cloud-amd64", "6.120.1-cloud-amd64", "7.2.13+deb14-cloud-amd64"])
def test_a_kernel_fetched_for_a_try_does_not_become_the_default(newer: str, cache: Cache) -> None:
    for version in (OLD, NEW, newer):
        put(cache, version, busybox())
    assert choose(Wishes(), Demo(), "", pytest.fail).label == NEW
    assert choose(Wishes(version=newer), Demo(), "", pytest.fail).label == newer
    cache.remove("guests", f"linux-{NEW}")
    assert choose(Wishes(), Demo(), "", pytest.fail).label == newer, "there is nothing else but an older one"


def test_an_exec_job_is_in_the_initrd_and_a_shell_knows_its_terminal(cache: Cache) -> None:
    put(cache, NEW, busybox())
    boot = choose(Wishes(), Exec("echo 'a  b'"), "vt220", lambda _: None)
    assert b"echo 'a  b'" in boot.initrd
    assert "TERM" not in boot.cmdline
    assert "TERM=vt220" in choose(Wishes(), Shell(), "vt220", lambda _: None).cmdline.split()


def test_an_initrd_of_the_users_own_is_taken_as_it_is(tmp_path: Path) -> None:
    kernel, initrd = own_kernel(tmp_path), tmp_path / "initrd"
    initrd.write_bytes(b"whatever")
    boot = choose(Wishes(kernel, initrd, append="x"), Shell(), "", lambda _: None)
    assert (boot.initrd, boot.cmdline) == (b"whatever", f"{OWN_INITRD_CMDLINE} x")
    with pytest.raises(GuestError, match=f"{tmp_path}/none cannot be read: {os.strerror(errno.ENOENT)}"):
        choose(Wishes(kernel, tmp_path / "none"), Shell(), "", lambda _: None)


def test_force_takes_a_kernel_on_trust(tmp_path: Path) -> None:
    kernel, initrd = own_kernel(tmp_path, NO_TDX), tmp_path / "initrd"
    initrd.touch()
    with pytest.raises(NoTdxSupport, match="--force"):
        choose(Wishes(kernel, initrd), Shell(), "", lambda _: None)
    assert choose(Wishes(kernel, initrd, force=True), Shell(), "", lambda _: None).kernel is not None


def test_where_nothing_can_be_fetched(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny guest instead, and it is said; but it cannot stand in for a command or a named kernel."""
    monkeypatch.setenv("PATH", "/nonexistent")
    said: list[str] = []
    assert choose(Wishes(), Demo(), "", said.append) == TINY
    assert "apt-cache and apt-get not found" in said[0]
    assert "tiny guest" in said[0]
    with pytest.raises(FetchError):
        choose(Wishes(), Exec("ls"), "", said.append)
    with pytest.raises(FetchError):
        choose(Wishes(version="6.12"), Demo(), "", said.append)


# -- how it ended ---------------------------------------------------------------------------------
@pytest.mark.parametrize("reason", EndReason)
def test_every_end_without_a_command_has_a_status_and_words_if_it_is_not_orderly(reason: EndReason) -> None:
    result = RunResult(reason, "why")
    status = run_report.exit_status(result, command=False)
    words = run_report.complaint(result, command=False)
    if result.orderly:
        assert status == 0
        assert words is None
    else:
        assert status == (124 if reason is EndReason.TIMEOUT else 126)
        assert words is not None
        assert reason.value in words
        assert "why" in words


@pytest.mark.parametrize("status", [0, 1, 77, 124, 126, 255])
def test_a_commands_status_is_ours(status: int) -> None:
    result = RunResult(EndReason.POWER_OFF, exit_status=status)
    assert run_report.exit_status(result, command=True) == status
    assert run_report.complaint(result, command=True) is None


def test_a_command_that_switches_the_guest_off_has_no_status() -> None:
    result = RunResult(EndReason.POWER_OFF)
    assert run_report.exit_status(result, command=True) == run_report.ABNORMAL
    assert "before the command had ended" in (run_report.complaint(result, command=True) or "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_as_a_shell_reports_them(number: signal.Signals) -> None:
    result = RunResult(EndReason.STOPPED, number.name)
    assert run_report.exit_status(result, command=True) == 128 + number
    assert run_report.complaint(result, command=True) is None


def test_leaving_is_no_failure() -> None:
    assert run_report.exit_status(RunResult(EndReason.STOPPED, "Ctrl-A x"), command=False) == 0


# -- the quote service ----------------------------------------------------------------------------
def test_a_quote_service_that_fails_is_told_once() -> None:
    said: list[str] = []

    def missing(_data: bytes) -> bytes:
        raise ConnectionRefusedError("cannot reach unix:/run/qgs.sock")

    quotes = ToldQuotes(missing, "unix:/run/qgs.sock", said.append)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            quotes(b"")
    assert said == ["the guest got no quote: cannot reach unix:/run/qgs.sock"]
    assert quotes.document() == {
        "service": "unix:/run/qgs.sock",
        "requests": 3,
        "failed": 3,
        "reason": "cannot reach unix:/run/qgs.sock",
    }


def test_a_quote_service_that_works_is_not_mentioned() -> None:
    said: list[str] = []
    quotes = ToldQuotes(bytes, None, said.append)
    assert quotes(b"quote") == b"quote"
    assert said == []
    assert quotes.document()["reason"] is None
