"""A Linux TD that runs one command after another, through the public interface."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import swtdx
from swtdx.api.linux import CommandFailed
from swtdx.guests import cpio
from swtdx.guests.guest import Guest
from swtdx.machine.snapshot import SnapshotError
from swtdx.vmm.errors import VmmError

pytestmark = pytest.mark.boot


@pytest.fixture(scope="module")
def platform(guest: Guest) -> Iterator[swtdx.Platform]:
    with swtdx.Platform(cpus=2) as platform:
        yield platform


@pytest.fixture(scope="module")
def td(platform: swtdx.Platform) -> swtdx.LinuxTd:
    return platform.linux(memory=256 << 20, vcpus=2)


def test_commands_one_after_another(td: swtdx.LinuxTd) -> None:
    assert td.run("uname -r").output.strip() == td.kernel
    done = td.run("echo out; echo err >&2; exit 7")
    assert (done.status, done.stdout, done.stderr, done.ok) == (7, b"out\n", b"err\n", False)
    assert td.run("nproc").output == "2\n"
    merged = td.run("echo a; echo b >&2; echo c", merge=True)
    assert (merged.stdout, merged.stderr) == (b"a\nb\nc\n", b"")
    several = td.run("for i in 1 2 3\ndo echo $i\ndone\ncat <<X\n'quoted' \"text\" \\n\nX")
    assert several.output == "1\n2\n3\n'quoted' \"text\" \\n\n"
    with pytest.raises(CommandFailed, match=r"ended with status 3: why"):
        td.run("echo why >&2; exit 3", check=True)


def test_input_and_output_of_any_bytes(td: swtdx.LinuxTd) -> None:
    data = os.urandom(300_000)
    assert td.run("cat", stdin=data).stdout == data
    assert td.run("sha256sum", stdin=data).output.split()[0] == hashlib.sha256(data).hexdigest()


def test_a_command_that_takes_too_long_is_killed_and_the_td_lives(td: swtdx.LinuxTd) -> None:
    with pytest.raises(TimeoutError, match=r"killed after 1 s; it had printed 'begun"):
        td.run("echo begun; sleep 1000 & sleep 1000", timeout=1)
    assert td.run("ps | grep -c '[s]leep 1000'").output == "0\n"


def test_what_runs_in_the_background_goes_on(td: swtdx.LinuxTd) -> None:
    td.run("(while :; do echo tick >>/tmp/ticks; usleep 20000; done) &")
    first = len(td.run("cat /tmp/ticks").stdout)
    second = len(td.run("sleep 1; cat /tmp/ticks").stdout)
    assert second > first


def test_files_and_folders(td: swtdx.LinuxTd, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a/b").write_bytes(os.urandom(70_000))
    (folder / "run").write_text("#!/bin/sh\necho I run\n")
    (folder / "run").chmod(0o755)
    assert td.copy_to(folder) == "/root/folder"
    assert td.run("folder/run").output == "I run\n"
    back = td.copy_from("/root/folder", tmp_path / "back")
    assert (back / "a/b").read_bytes() == (folder / "a/b").read_bytes()
    td.write("/tmp/deep/er/file", b"\0\n\xff", 0o600)
    assert td.read("/tmp/deep/er/file") == b"\0\n\xff"
    assert b"console=hvc0" in td.read("/proc/cmdline")
    assert td.copy_from("/etc/profile", tmp_path).name == "profile"
    with pytest.raises(OSError, match=r"nowhere.*No such file"):
        td.read("/nowhere")
    with pytest.raises(OSError, match="is a folder"):
        td.write("/tmp", b"")


def test_a_quote_for_each_nonce(td: swtdx.LinuxTd, platform: swtdx.Platform) -> None:
    for nonce in (b"one", b"two"):
        quote = td.quote(nonce)
        assert quote.reportdata == nonce.ljust(64, b"\0")
        verdict = swtdx.verify(quote, platform.collateral(), root=platform.root, accept_simulated=True)
        assert verdict.accepted


def test_a_hook_on_a_running_linux(td: swtdx.LinuxTd) -> None:
    seen = 0

    def spoil(exit: swtdx.Exit) -> None:
        nonlocal seen
        seen += exit.tdvmcall is not None
        if exit.port == 0x71:
            exit.answer(r11=0x99)

    td.on_exit(spoil)
    td.run("true", check=True)
    td.remove_hook(spoil)
    assert seen
    calls = seen
    td.run("true", check=True)
    assert seen == calls
    assert "TDVMCALL" in "".join(td.last_exits())


def test_a_guest_that_dies_is_told(platform: swtdx.Platform) -> None:
    with platform.linux(memory=256 << 20) as td:
        with pytest.raises(swtdx.TdEnded, match=r"during the command 'echo c >/proc/sysrq-trigger'"):
            td.run("echo c >/proc/sysrq-trigger")
        assert td.result is not None
        with pytest.raises(swtdx.TdEnded, match="has ended"):
            td.run("true")
        assert b"sysrq" in td.console


def test_switching_off(platform: swtdx.Platform) -> None:
    with platform.linux(memory=256 << 20, append="swtdx.word=1") as td:
        assert "swtdx.word=1" in td.run("cat /proc/cmdline").output
        assert str(td.off()) == "the guest switched off"


def test_saved_and_gone_on_with(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "td"
    with swtdx.Platform() as platform, platform.linux(memory=256 << 20) as td:
        td.run("echo mine >/tmp/f", check=True)
        with platform.linux(memory=256 << 20), pytest.raises(VmmError, match="no other TD"):
            td.save(path)
        td.save(path)
        td.run("echo later >/tmp/f", check=True)
    with swtdx.restore(path) as one, swtdx.restore(path) as other:
        assert one.run("cat /tmp/f; echo one >/tmp/f").output == "mine\n"
        assert other.run("cat /tmp/f").output == "mine\n"
        assert (one.kernel, one.memory) == (guest.version, 256 << 20)
        verdict = swtdx.verify(
            one.quote(), one.platform.collateral(), root=one.platform.root, accept_simulated=True
        )
        assert verdict.accepted
    assert one.closed
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-100])
    for wrong in (tmp_path / "cut", tmp_path / "none"):
        with pytest.raises(SnapshotError):
            swtdx.restore(wrong)


def test_a_kernel_that_does_not_come_up(platform: swtdx.Platform) -> None:
    with pytest.raises(swtdx.TdEnded, match="Linux did not come up"):
        platform.linux(memory=256 << 20, append="rdinit=/nothing init=/nothing", timeout=60)


def test_an_initrd_of_ones_own(platform: swtdx.Platform, guest: Guest, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    # Its init never ends, as a distribution's.
    busybox = guest.busybox.read_bytes()
    initrd.write_bytes(
        cpio.archive(
            [
                *(cpio.directory(name) for name in ("bin", "proc", "sys", "dev", "root", "tmp")),
                cpio.regular("bin/busybox", busybox, 0o755),
                cpio.symlink("bin/sh", "busybox"),
                cpio.regular("init", b"#!/bin/sh\nwhile :; do /bin/busybox sleep 100; done\n", 0o755),
                cpio.regular("mine", b"the user's own\n"),
            ]
        )
    )
    with platform.linux(kernel=guest.kernel, initrd=initrd, memory=256 << 20) as td:
        assert td.run("cat /mine").output == "the user's own\n"
        assert td.run("echo $$ >/dev/null; cat /proc/1/comm").output == "init\n"
