"""One command's output out of a noisy console, however the bytes are cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.guests.exec_protocol import ExecStream, default_token

TOKEN = "0123abcd"
BEGIN = b"\x1e0123abcd BEGIN\n"
END = b"\x1e0123abcd END %d\n"
#: Bytes that like to look like markers.
TRICKY = st.lists(
    st.sampled_from([b"\x1e", b"0123abcd", b" BEGIN", b" EN", b"D ", b"\n", b"\r", b"\0", b"x", b"\xff"])
).map(b"".join)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    before=TRICKY.filter(lambda data: BEGIN not in data),
    output=TRICKY.filter(lambda data: b"\x1e0123abcd END" not in data),
    after=TRICKY,
    status=st.integers(0, 255),
    cuts=st.lists(st.integers(0, 2**16), max_size=12),
)
def test_output_status_and_log_are_told_apart(
    before: bytes, output: bytes, after: bytes, status: int, cuts: list[int]
) -> None:
    if BEGIN in (before + BEGIN)[:-1]:
        return
    stream = ExecStream(TOKEN)
    console = before + BEGIN + output + END % status + after
    got = b"".join(stream.feed(piece) for piece in _cut(console, cuts)) + stream.finish()
    assert got == output
    assert stream.status == status
    assert stream.log == before + after


def test_output_comes_as_soon_as_it_is_certain() -> None:
    stream = ExecStream(TOKEN)
    assert stream.feed(BEGIN + b"line\n") == b"line\n"
    assert stream.feed(b"half \x1e0123") == b"half "
    assert stream.feed(b"abc!") == b"\x1e0123abc!"


def test_a_guest_that_dies_in_between_has_no_status() -> None:
    stream = ExecStream(TOKEN)
    assert stream.feed(b"boot\n" + BEGIN + b"out\x1e") == b"out"
    assert stream.finish() == b"\x1e"
    assert stream.status is None
    assert stream.started


def test_a_guest_that_never_starts_the_command() -> None:
    stream = ExecStream(TOKEN)
    assert stream.feed(b"Kernel panic\n\x1e012") == b""
    assert stream.finish() == b""
    assert stream.log == b"Kernel panic\n\x1e012"
    assert not stream.started


@pytest.mark.parametrize("command", ["true", "é\n", "x" * 1000])
def test_tokens_are_fixed_by_the_command(command: str) -> None:
    assert default_token(command) == default_token(command)
    assert default_token(command) != default_token(command + " ")
    assert default_token(command).isalnum()


@pytest.mark.parametrize(
    ("written", "status", "log"),
    [
        (b"300\n", 255, b""),
        (b"x\n", 255, b""),
        (b"-1\n", 255, b""),
        (b"\n", 255, b""),
        (b"9" * 5000 + b"\nafter", 255, b"after"),
        (b"9" * 5000, 255, b"9" * 5000),
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_a_forged_end(written: bytes, status: int, log: bytes, size: int) -> None:
    """The guest may write anything: it gets a status, and not our memory."""
    stream = ExecStream("token")
    data = b"\x1etoken BEGIN\nout\x1etoken END " + written
    out = b"".join(stream.feed(data[at : at + size]) for at in range(0, len(data), size)) + stream.finish()
    assert out == b"out"
    assert stream.status == status
    assert stream.take_log().endswith(log)
    assert stream.take_log() == b""
