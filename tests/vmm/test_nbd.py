"""The NBD client: against QEMU's server, and against servers that answer anything."""

from __future__ import annotations

import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.vmm.errors import VmmError
from swtdx.vmm.peripherals.attach import open_image
from swtdx.vmm.peripherals.config import DiskConfig
from swtdx.vmm.peripherals.nbd import NbdImage

SIZE = 8 << 20
REPLIES = 1000


def good_replies() -> bytes:
    """What a server says to a client that connects, reads 4096 bytes, writes and flushes."""
    option = struct.pack(">QIII", 0x3E889045565A9, 7, 3, 12) + struct.pack(">HQH", 0, SIZE, 0x65)
    done = struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
    answers = b"".join(
        struct.pack(">IIQ", 0x67446698, 0, number) + data
        for number, data in ((1, bytes(4096)), (2, b""), (3, b""), (4, b""))
    )
    return b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3) + option + done + answers


def talk(replies: bytes) -> str:
    """A session with a server that says ``replies``, whatever it is asked: how it went."""
    near, far = socket.socketpair()
    with near, far:
        far.sendall(replies)
        far.shutdown(socket.SHUT_WR)
        try:
            image = NbdImage(near, read_only=False, patience=5)
        except OSError:
            return "no session"
        failed = 0
        steps: list[Callable[[], None]] = [
            lambda: image.read(0, [memoryview(bytearray(4096))]),
            lambda: image.write(512, [memoryview(bytes(512)), memoryview(bytes(64))]),
            image.flush,
            lambda: image.zero(0, 4096, unmap=True),
        ]
        for step in steps:
            try:
                step()
            except OSError:
                failed += 1
        image.close()
        return f"{failed} failed"


def test_a_good_session() -> None:
    assert talk(good_replies()) == "0 failed"


def test_replies_that_are_wrong() -> None:
    numbers = random.Random(11)
    good = good_replies()
    outcomes = set()
    for _ in range(REPLIES):
        data = bytearray(good)
        for _ in range(numbers.randrange(1, 4)):
            kind = numbers.random()
            at = (
                numbers.randrange(len(data))
                if numbers.random() < 0.5
                else numbers.randrange(min(90, len(data)))
            )
            if kind < 0.6:
                data[at] = numbers.choice((0, 0xFF, data[at] ^ 1 << numbers.randrange(8)))
            elif kind < 0.8:
                del data[at : at + numbers.randrange(1, 40)]
            else:
                data[at:at] = numbers.randbytes(numbers.randrange(1, 40))
        if numbers.random() < 0.2:
            del data[numbers.randrange(len(data)) :]
        outcomes.add(talk(bytes(data)))
    assert {"no session", "0 failed", "4 failed"} <= outcomes


def test_after_half_an_answer_nothing_is_read_as_the_next() -> None:
    good = good_replies()
    start = len(good) - 3 * 16 - 4096
    assert talk(good[:start] + b"\0" * 4) == "4 failed"


def test_a_server_that_says_nothing_is_given_up() -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(OSError, match="timed out"):
        NbdImage(near, read_only=True, patience=0.05)


@pytest.fixture(params=["qcow2", "vmdk", "vhdx", "vdi", "vpc"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> DiskConfig:
    if shutil.which("qemu-img") is None or shutil.which("qemu-nbd") is None:
        pytest.skip("no qemu-img and qemu-nbd (Debian, Ubuntu: package qemu-utils)")
    path = tmp_path / f"disk.{request.param}"
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, path, str(SIZE)], check=True)
    return DiskConfig(path, request.param)


@pytest.mark.qemu
def test_images_of_other_hypervisors(disk: DiskConfig, tmp_path: Path) -> None:
    """What is written through the client is what qemu-img reads out of the image, and the other way round."""
    numbers = random.Random(disk.format)
    image = open_image(disk)
    model = bytearray(image.size)
    for _ in range(40):
        size = numbers.choice((512, 4096, 70_144))
        at = numbers.randrange(0, SIZE - size, 512)
        data = numbers.randbytes(size)
        if numbers.random() < 0.3:
            image.zero(at, size, unmap=True)
            data = bytes(size)
        else:
            image.write(at, [memoryview(data)[:100], memoryview(data)[100:]])
        model[at : at + size] = data
    image.flush()
    image.close()
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", disk.format, "-O", "raw", disk.path, raw], check=True)
    assert raw.read_bytes() == model
    again = open_image(DiskConfig(disk.path, disk.format, snapshot=True))
    again.write(0, [memoryview(b"gone" * 128)])
    back = bytearray(again.size)
    again.read(0, [memoryview(back)])
    assert back == b"gone" * 128 + model[512:]
    again.close()
    words = ["qemu-img", "compare", "-q", "-f", disk.format, "-F", "raw", str(disk.path), str(raw)]
    assert subprocess.run(words, check=False).returncode == 0


@pytest.mark.qemu
def test_the_storage_daemon_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = shutil.which("qemu-storage-daemon")
    if daemon is None or shutil.which("qemu-img") is None:
        pytest.skip("no qemu-img and qemu-storage-daemon")
    path = tmp_path / "a,b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "qemu-storage-daemon").symlink_to(daemon)
    monkeypatch.setenv("PATH", str(folder))
    image = open_image(DiskConfig(path, "qcow2"))
    image.write(1024, [memoryview(b"here" * 128)])
    image.close()
    image = open_image(DiskConfig(path, "qcow2", read_only=True))
    back = bytearray(512)
    image.read(1024, [memoryview(back)])
    image.close()
    assert back == b"here" * 128


def test_what_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junk = tmp_path / "junk.qcow2"
    junk.write_bytes(b"x" * 4096)
    if shutil.which("qemu-nbd") is not None:
        with pytest.raises(VmmError, match=r"junk.qcow2 cannot be opened by qemu-nbd: .*qcow2"):
            open_image(DiskConfig(junk, "qcow2"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmmError, match=r"not installed .*qemu-utils.*qemu-img convert"):
        open_image(DiskConfig(junk, "qcow2"))
    with pytest.raises(VmmError, match="absent cannot be opened: No such file"):
        open_image(DiskConfig(tmp_path / "absent"))
    (tmp_path / "empty").touch()
    with pytest.raises(VmmError, match="is empty: make it larger"):
        open_image(DiskConfig(tmp_path / "empty"))
    with pytest.raises(VmmError, match=r"opened: Is a directory|neither a file"):
        open_image(DiskConfig(tmp_path, read_only=True))
