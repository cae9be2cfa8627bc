"""What is said on the channel of a guest that serves one request after another."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from swtdx.guests.agent import MOST, AgentStream, Answer, get_request, put_request, run_request
from swtdx.guests.errors import GuestError

OUT = bytes(range(256)) + b"END 9\nFAIL no\n"
SPOKEN = b"READY\nMORE\nOUT %d\n" % len(OUT) + OUT + b"ERR 0\nEND 42\n"


@given(some.lists(some.integers(0, len(SPOKEN)), max_size=12))
def test_pieces_of_any_size(cuts: list[int]) -> None:
    stream = AgentStream()
    for start, end in pairwise([0, *sorted(cuts), len(SPOKEN)]):
        stream.feed(SPOKEN[start:end])
    assert stream.ready
    assert stream.more
    assert stream.answer is not None
    assert stream.answer.status == 42
    assert stream.answer.parts == {"OUT": OUT, "ERR": b""}


@given(some.binary(max_size=300))
def test_nonsense_is_no_answer(data: bytes) -> None:
    stream = AgentStream()
    stream.feed(b"x" + data.replace(b"\n", b"\nx"))
    assert stream.answer is None


def test_a_guest_cannot_announce_more_than_the_host_takes() -> None:
    stream = AgentStream()
    stream.feed(b"FILE %d\nabc\nDONE\n" % (MOST + 1))
    assert stream.answer is not None
    assert stream.answer.parts == {}


def test_an_answer_belongs_to_its_request() -> None:
    stream = AgentStream()
    stream.feed(b"OUT 1\naEND 1\n")
    stream.expect()
    stream.feed(b"OUT 1\n")
    waiting = stream.answer
    stream.feed(b"bFAIL cat: no\n")
    assert waiting is None
    assert stream.answer == Answer(parts={"OUT": b"b"}, failure="cat: no")


@pytest.mark.parametrize("command", ["", " \n", "a\0b"])
def test_what_is_no_command_is_not_sent(command: str) -> None:
    with pytest.raises(GuestError):
        run_request(command, merge=False)


@pytest.mark.parametrize("path", ["", "a\nb", "a\0b"])
def test_what_is_no_path_is_not_sent(path: str) -> None:
    with pytest.raises(GuestError):
        put_request(path, b"")
    with pytest.raises(GuestError):
        get_request(path)


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox")
def test_the_guests_end_understands_what_we_send(tmp_path: Path) -> None:
    """``serve.sh`` under the same shell that the guest has, with a socket in the place of the port."""
    import socket

    ours, theirs = socket.socketpair()
    guests = Path(__file__).parents[2] / "src/swtdx/guests"
    (tmp_path / "swtdx").mkdir()
    script = (guests / "serve.sh").read_text().replace("/swtdx/", f"{tmp_path}/swtdx/")
    start = f"path=$PATH; shell=sh; exec 8<&{theirs.fileno()}"
    # The loop alone: there is no port to wait for.
    loop = script[script.index("    printf 'READY") : script.rindex("}")]
    body = script[: script.index("# serve PATH SHELL")]
    bins = tmp_path / "bin"
    bins.mkdir()
    for name in ("sh", "setsid", "stat", "head", "rm", "cat", "mkdir", "chmod", "tar", "sleep", "kill"):
        (bins / name).symlink_to(shutil.which("busybox") or "")
    guest = subprocess.Popen(
        [bins / "sh", "-c", f"{body}\nmain() {{\n{loop}\n}}\n{start}\nmain"],
        pass_fds=[theirs.fileno()], env={"PATH": str(bins)}, cwd=tmp_path, stderr=subprocess.PIPE,
    )  # fmt: skip
    theirs.close()
    stream = AgentStream()

    def ask(head: bytes, body: bytes) -> Answer:
        stream.expect()
        ours.sendall(head)
        while stream.answer is None:
            if stream.more:
                stream.more = False
                ours.sendall(body)
            data = ours.recv(65536)
            assert data, guest.communicate()[1].decode()
            stream.feed(data)
        return stream.answer

    try:
        ours.settimeout(20)
        while not stream.ready:
            stream.feed(ours.recv(100))
        for number in range(2):
            request = run_request(f"cat; echo bad >&2; exit {number}", os.urandom(5000), merge=False)
            answer = ask(request.head, request.body)
            assert (answer.status, answer.killed) == (number, False)
            assert answer.parts == {"OUT": request.body, "ERR": b"bad\n"}
        request = run_request("echo a\necho b >&2; sleep 100", seconds=1, merge=True)
        answer = ask(request.head, b"")
        assert answer.parts["OUT"] == b"a\nb\n"
        assert (answer.status, answer.killed) == (128 + 9, True)
        data = os.urandom(10_000)
        request = put_request("deep/down/file", data, 0o751)
        answer = ask(request.head, request.body)
        assert answer.failure is None
        assert (tmp_path / "deep/down/file").read_bytes() == data
        assert (tmp_path / "deep/down/file").stat().st_mode & 0o777 == 0o751
        answer = ask(get_request("deep/down/file").head, b"")
        assert answer.parts == {"FILE": data}
        answer = ask(get_request("nowhere").head, b"")
        assert "nowhere" in (answer.failure or "")
        request = put_request("deep", b"x")
        answer = ask(request.head, request.body)
        assert answer.failure == "deep is a folder"
        ours.sendall(b"OFF\n")
        assert guest.wait(10) == 0
    finally:
        guest.kill()
        guest.communicate()
        ours.close()
