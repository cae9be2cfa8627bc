"""What comes over the control channel of a command, in pieces of any size."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from swtdx.guests.exec_channels import ControlStream

FILE = bytes(range(256)) + b"END 9\nFILE 0 5\n"
SPOKEN = (
    b"BEGIN\n"
    + b"FILE 0 %d\n" % len(FILE)
    + FILE
    + b"NOFILE 1 cat: can't open '/nope': No such file or directory\n"
    + b"FILE 2 0\n"
    + b"END 42\n"
)


@given(some.lists(some.integers(0, len(SPOKEN)), max_size=12))
def test_pieces_of_any_size(cuts: list[int]) -> None:
    got: dict[int, bytes] = {}

    def take(number: int, data: bytes) -> None:
        got[number] = got.get(number, b"") + data

    stream = ControlStream(3, take)
    edges = [0, *sorted(cuts), len(SPOKEN)]
    for start, end in pairwise(edges):
        stream.feed(SPOKEN[start:end])
    assert stream.started
    assert stream.status == 42
    assert got == {0: FILE, 2: b""}
    assert stream.files == {0, 2}
    assert stream.missing == {1: "cat: can't open '/nope': No such file or directory"}


@given(some.binary(max_size=300))
def test_nonsense_is_ignored(data: bytes) -> None:
    stream = ControlStream(0)
    stream.feed(data)
    assert stream.files == set()


def test_a_file_that_was_not_asked_for_is_not_taken() -> None:
    taken: list[int] = []
    stream = ControlStream(1, lambda number, _data: taken.append(number))
    stream.feed(b"FILE 1 3\nabc\nEND 0\n")
    assert taken == []
    assert stream.status == 0


def test_a_status_is_a_byte() -> None:
    for said, status in ((b"300", 255), (b"-1", 255), (b"", 255), (b"7", 7)):
        stream = ControlStream()
        stream.feed(b"END " + said + b"\n")
        assert stream.status == status


def test_an_endless_line_takes_no_memory() -> None:
    stream = ControlStream()
    for _ in range(100):
        stream.feed(b"x" * 100_000)
    assert len(stream._line) <= 4096
