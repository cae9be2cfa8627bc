"""The initramfs: read back by a parser written from the format's description, as the kernel reads it."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from swtdx.guests import cpio
from swtdx.guests.errors import GuestError
from swtdx.guests.initramfs import (
    LONGEST_COMMAND,
    Demo,
    Exec,
    Shell,
    base_archive,
    build_initramfs,
    default_cmdline,
    job_archive,
)
from swtdx.guests.modules import Module

Files = dict[str, tuple[int, bytes]]


def read_newc(data: bytes) -> Files:
    """path → (mode, contents), walking concatenated archives the way init/initramfs.c does."""
    files: Files = {}
    at = 0
    while at < len(data):
        if data[at] == 0:  # padding between archives
            at += 4 - at % 4 if at % 4 else 4
            continue
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        start = (at + 110 + fields[11] + 3) & ~3
        body = data[start : start + fields[6]]
        assert len(body) == fields[6]
        assert (fields[2], fields[3], fields[5], fields[12]) == (0, 0, 0, 0)  # uid, gid, mtime, check
        at = (start + fields[6] + 3) & ~3
        path = name[:-1].decode()
        if path != "TRAILER!!!":
            files[path] = (fields[1], body)
    return files


@pytest.fixture(scope="module")
def busybox() -> bytes:
    """The smallest thing that passes for a static x86-64 program: an ELF header without segments."""
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    header[0x12] = 0x3E
    return bytes(header)


def test_contents_and_modes(busybox: bytes) -> None:
    modules = [Module("configfs", b"CCC"), Module("tsm", b"TT"), Module("tdx_guest", b"X")]
    files = read_newc(build_initramfs(busybox, modules, Exec("echo hi")))
    assert files["init"][0] == stat.S_IFREG | 0o755
    assert files["init"][1].startswith(b"#!/bin/sh\n")
    assert files["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert files["bin/busybox"] == (stat.S_IFREG | 0o755, busybox)
    assert files["dev/console"][0] == stat.S_IFCHR | 0o600
    assert files["lib/modules/order"][1] == b"configfs\ntsm\ntdx_guest\n"
    assert files["lib/modules/tdx_guest.ko"][1] == b"X"
    assert files["swtdx/command"][1] == b"echo hi"
    assert files["swtdx/mode"][1] == b"exec\n"
    parents = {path.rsplit("/", 1)[0] for path in files if "/" in path}
    assert all(stat.S_ISDIR(files[parent][0]) for parent in parents)


def test_parents_come_before_their_children(busybox: bytes) -> None:
    seen: set[str] = set()
    for path in read_newc(build_initramfs(busybox)):
        assert "/" not in path or path.rsplit("/", 1)[0] in seen
        seen.add(path)


def test_the_same_input_gives_the_same_bytes_in_any_order(busybox: bytes) -> None:
    one = cpio.archive([cpio.regular("b", b"2"), cpio.regular("a", b"1")])
    two = cpio.archive([cpio.regular("a", b"1"), cpio.regular("b", b"2")])
    assert one == two
    assert build_initramfs(busybox, job=Exec("x")) == build_initramfs(busybox, job=Exec("x"))


@pytest.mark.parametrize("path", ["/abs", "a/../b", "a//b", "nul\0", ""])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(ValueError, match="cannot be a path"):
        cpio.archive([cpio.regular(path, b"")])


def test_the_same_path_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.regular("a", b""), cpio.directory("a")])


def test_the_commands_bytes_are_kept() -> None:
    command = "  printf '%s\\n' \"$HOME\" \n\n# ä \t\n"
    assert read_newc(job_archive(Exec(command)))["swtdx/command"][1] == command.encode()


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Exec(" \n"), "no command"),
        (Exec("a\0b"), "NUL"),
        (Exec("x" * (LONGEST_COMMAND + 1)), "too long"),
        (Exec("true", token="a b"), "letters and digits"),
    ],
)
def test_impossible_commands(job: Exec, words: str) -> None:
    with pytest.raises(GuestError, match=words):
        job_archive(job)


def test_modes() -> None:
    assert read_newc(job_archive(Shell()))["swtdx/mode"][1] == b"shell\n"
    assert b"tdreport" in read_newc(job_archive(Demo()))["swtdx/demo"][1]


def test_a_dynamic_or_foreign_busybox_is_refused(busybox: bytes) -> None:
    with pytest.raises(GuestError, match="x86 ELF"):
        base_archive(b"#!/bin/sh\n")
    dynamic = bytearray(busybox + (3).to_bytes(4, "little") + bytes(52))
    dynamic[0x20], dynamic[0x36], dynamic[0x38] = 64, 56, 1  # one program header, PT_INTERP
    with pytest.raises(GuestError, match="statically linked"):
        base_archive(bytes(dynamic))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_reads_it(busybox: bytes, tmp_path: Path) -> None:
    listed = subprocess.run(
        ["cpio", "-t", "--quiet"], input=base_archive(busybox), capture_output=True, check=True
    )
    assert listed.stdout.decode().splitlines() == list(read_newc(base_archive(busybox)))


@pytest.mark.parametrize(
    "script", ["init.sh", "exec.sh", "wrap.sh", "demo.sh", "profile.sh", "tools/rtmr-extend.sh"]
)
def test_scripts_are_valid_shell(script: str) -> None:
    path = Path(__file__).parents[2] / "src/swtdx/guests" / script
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_the_command_line_carries_only_harmless_terminal_names() -> None:
    assert default_cmdline(Shell(), "xterm-256color").split()[-1] == "TERM=xterm-256color"
    for term in ("", "a b", "x\ninit=/bin/evil", "-x", "a" * 100):
        assert default_cmdline(Shell(), term) == default_cmdline(Shell())
    assert "TERM" not in default_cmdline(Exec("true"), "xterm")
