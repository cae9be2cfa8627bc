"""What only a whole boot shows of ``swtdx run``: the demonstration, a shell on a terminal, files, bad ends.

What Linux finds inside the TD is tests/boot/test_linux.py's.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import gzip
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtdx.attestation.quote import ParsedQuote
from swtdx.guests import cpio
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import fetch_guest
from swtdx.guests.guest import Guest, default_guest
from tests.fetching import cannot_fetch

pytestmark = [
    pytest.mark.boot,
    pytest.mark.qemu,
    pytest.mark.network,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]
RUN = [sys.executable, "-m", "swtdx.cli.main", "run"]


@pytest.fixture(scope="module")
def guests() -> list[Guest]:
    try:
        # The one that a run takes which names none.
        return [default_guest() or fetch_guest()]
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*RUN, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=280, check=False
    )


def test_without_a_terminal_it_shows_what_a_td_is(guests: list[Guest]) -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    shown = done.stdout.decode()
    assert f"$ uname -r\r\n{guests[0].version}\r\n" in shown
    assert "tdx: Guest detected" in shown
    assert "Memory Encryption Features active: Intel TDX" in shown
    # RTMR1 is what anyone gets from the kernel's file alone.
    digest = hashlib.sha384(guests[0].kernel.read_bytes()).digest()
    assert hashlib.sha384(bytes(48) + digest).hexdigest() in shown


def test_a_kernel_of_the_users_own_and_output_byte_for_byte(guests: list[Guest], tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    shutil.copy(guests[0].kernel, kernel)
    log = tmp_path / "log"
    # In large pieces: line by line, on a terminal, it would cost two TD exits each.
    command = "printf 'a\\r\\n\\000\\377'; seq 3000 >/tmp/n; cat /tmp/n; echo err >&2"
    done = run("--kernel", str(kernel), "--log", str(log), "--append", "loglevel=7", "--exec", command)
    assert done.returncode == 0, done.stderr
    numbers = b"".join(b"%d\n" % number for number in range(1, 3001))
    assert done.stdout == b"a\r\n\0\xff" + numbers
    assert done.stderr == b"err\n"
    assert (
        b"Linux version " + guests[0].version.encode() in log.read_bytes() or b"Run /init" in log.read_bytes()
    )


def test_bad_ends_are_told_apart(tmp_path: Path) -> None:
    crash = run("--log", str(tmp_path / "log"), "--exec", "echo before; echo c >/proc/sysrq-trigger; sleep 9")
    assert crash.returncode == 126
    assert crash.stdout == b"before\n", "the kernel's last words are no output of the command"
    assert b"sysrq triggered crash" in (tmp_path / "log").read_bytes()
    assert b"kernel panic: sysrq triggered crash" in crash.stderr
    late = run("--timeout", "1", "--exec", "true")
    assert late.returncode == 124
    assert b"the time was over" in late.stderr


@pytest.mark.parametrize("console", ["ttyS0", "tty0", "ttyS0 console=tty0", "null"])
def test_a_command_whatever_the_console_is(guests: list[Guest], console: str) -> None:
    done = run("--append", f"console={console}", "--exec", "uname -r; echo e >/dev/stderr; exit 5")
    assert (done.stdout, done.stderr) == (guests[0].version.encode() + b"\n", b"e\n")
    assert done.returncode == 5


def test_input_files_and_an_initrd_of_the_users_own(guests: list[Guest], tmp_path: Path) -> None:
    """The user's init is process 1, and the command runs beside it."""
    guest = guests[0]
    init = (
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmkdir /proc /dev /mine\n"
        "mount -t proc proc /proc && mount -t devtmpfs dev /dev && echo theirs >/mine/file\n"
        "while :; do sleep 1; done\n"
    )
    own = [cpio.directory("bin"), cpio.regular("bin/busybox", guest.busybox.read_bytes(), 0o755)]
    (tmp_path / "initrd").write_bytes(
        gzip.compress(cpio.archive([*own, cpio.regular("init", init.encode(), 0o755)]))
    )
    (tmp_path / "input").write_bytes(os.urandom(300_000))
    (tmp_path / "more").write_bytes(b"added\n")
    with open(tmp_path / "input", "rb") as source:
        done = subprocess.run(
            [
                *RUN, "--kernel", str(guest.kernel), "--initrd", str(tmp_path / "initrd"),
                "--add", f"{tmp_path}/more:/srv/", "--get", f"/tmp/back:{tmp_path}/back",
                "--get", f"/nope:{tmp_path}/nope", "--exec",
                "mkdir -p /tmp; cat >/tmp/back; cat /srv/more /mine/file; tr '\\0' ' ' </proc/1/cmdline",
            ],
            stdin=source, capture_output=True, timeout=280, check=False,
        )  # fmt: skip
    assert done.stdout == b"added\ntheirs\n/bin/busybox sh /init "
    assert (tmp_path / "back").read_bytes() == (tmp_path / "input").read_bytes()
    # A file that does not come is told, and is not a success.
    assert done.returncode == 1
    assert b"/nope was not brought out of the guest" in done.stderr
    assert not (tmp_path / "nope").exists()


def test_what_a_relying_party_looks_for_is_in_the_quote(guests: list[Guest], tmp_path: Path) -> None:
    """Initdata's digest in hex and in base64, as QEMU takes it, and ATTRIBUTES by their names."""
    config, owner = hashlib.sha384(b"initdata").digest(), hashlib.sha384(b"owner").digest()
    done = subprocess.run(
        [
            *RUN[:-1], "quote", "--guest", guests[0].version, "--nonce", "c0ffee", "-o", str(tmp_path / "q"),
            "--v5",
            "--mrconfigid", config.hex(), "--mrowner", base64.b64encode(owner).decode(),
            "--mrownerconfig", "ab" * 48, "--attributes", "sept-ve-disable=off,debug", "--attributes", "pks",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parsed = ParsedQuote((tmp_path / "q").read_bytes())
    body = parsed.body()
    assert parsed.version == 5
    assert (body["mrconfigid"], body["mrowner"], body["mrownerconfig"]) == (config, owner, b"\xab" * 48)
    # Bit 0 DEBUG, 28 SEPT_VE_DISABLE, without which Linux only runs where debugging is allowed, 30 PKS.
    assert int.from_bytes(body["tdattributes"], "little") == 1 << 30 | 1
    assert body["reportdata"] == bytes.fromhex("c0ffee").ljust(64, b"\0")


def test_a_quote_service_that_is_not_there(guests: list[Guest], tmp_path: Path) -> None:
    """The guest sees what Linux shows, nothing or EIO (7.2), and the host says why."""
    ask = (
        "cd /sys/kernel/config/tsm/report; mkdir a; cd a; head -c 64 /dev/zero > inblob;"
        "cat outblob | wc -c; head -c 64 /dev/zero > inblob; cat outblob | wc -c"
    )
    where = f"unix:{tmp_path}/nothing.sock"
    summary = tmp_path / "summary"
    done = run("--guest", guests[0].version, "--qgs", where, "--json", str(summary), "--exec", ask)
    assert (done.returncode, done.stdout) == (0, b"0\n0\n")
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("swtdx: ")]
    assert len(said) == 1, "once"
    assert where in said[0]
    assert os.strerror(errno.ENOENT) in said[0]
    told = json.loads(summary.read_text())["quotes"]
    assert (told["requests"], told["failed"]) == (2, 2)
    assert where in told["reason"]


#: busybox's shell at home: newer ones write a tilde.
PROMPT = rb":(?:/root|~)# "


class Keyboard:
    """A terminal with a user in front of it."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [*RUN, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "vt100"},
        )
        self.theirs = theirs
        self.seen = b""

    def expect(self, pattern: bytes, seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.ours], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} does not come; the end is {self.seen[-500:]!r}"
            self.seen += os.read(self.ours, 4096)
        self.seen = self.seen[found.end() :]

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def keyboard(guests: list[Guest]) -> Iterator[Keyboard]:
    made = Keyboard()
    yield made
    made.close()


def test_a_shell_to_type_into_and_ctrl_a_x(keyboard: Keyboard) -> None:
    keyboard.expect(rb"You are root in a trust domain")
    keyboard.expect(PROMPT)
    keyboard.type(b"echo $((6 * 7)) $TERM\r")
    keyboard.expect(rb"\n42 vt100\r\n")
    fcntl.ioctl(keyboard.ours, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    os.kill(keyboard.process.pid, signal.SIGWINCH)
    keyboard.type(b"while [ \"$(stty size)\" != '33 99' ]; do :; done; echo si''ze\r")
    keyboard.expect(rb"\nsize\r\n", 60)
    keyboard.type(b"\x01x")
    assert keyboard.process.wait(60) == 0
    assert termios.tcgetattr(keyboard.theirs) == keyboard.before, "the terminal is left as it was"
