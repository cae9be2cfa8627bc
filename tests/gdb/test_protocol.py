"""GDB's protocol: what any debugger, or anybody else, may send; with a target that holds a few bytes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.gdb.packets import LARGEST, Decoder, Packet, Signal, encode
from swtdx.gdb.registers import BY_NAME, GENERAL, REGISTERS, target_xml
from swtdx.gdb.session import Action, Breakpoint, Resume, Session, Stop, TargetError


def test_packets_of_the_manual() -> None:
    """Checksums and escapes as GDB's manual has them."""
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"}") == b"$}]#da"
    decoder = Decoder()
    assert decoder.feed(b"+$g#67\x03-") == [Signal.ACK, Packet(b"g"), Signal.INTERRUPT, Signal.NACK]
    assert decoder.feed(b"$g#68") == [Packet(None)]
    assert decoder.feed(b"$qSupp") == []
    assert decoder.feed(b"$?#3f") == [Packet(b"?")], "a packet that was cut off is given up"


@given(st.binary(max_size=300), st.integers(1, 7))
def test_what_is_encoded_comes_back(payload: bytes, step: int) -> None:
    decoder, found = Decoder(), []
    sent = encode(payload)
    for at in range(0, len(sent), step):
        found += decoder.feed(sent[at : at + step])
    assert found == [Packet(payload)]


@given(st.lists(st.one_of(st.binary(max_size=50), st.sampled_from([b"$", b"#", b"}", b"#00", b"\x03"]))))
def test_the_decoder_takes_anything(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        decoder.feed(piece)
    # After a whole packet of ours it is back in step.
    assert decoder.feed(b"#00" + encode(b"?"))[-1] == Packet(b"?")


def test_a_packet_without_an_end_is_not_kept() -> None:
    decoder = Decoder()
    assert decoder.feed(b"$" + b"x" * 10 * LARGEST) == []
    assert decoder.feed(b"#00") == [Packet(None)]


class Few:
    """A target with two threads, all registers, and 64 KiB of memory at 0x1000."""

    def __init__(self) -> None:
        self.registers = [bytearray(register.size) for register in REGISTERS]
        self.memory = bytearray(0x10000)
        self.points: set[tuple[Breakpoint, int, int]] = set()

    def threads(self) -> list[int]:
        return [1, 2]

    def describe(self, thread: int) -> str:
        return f"thread {thread}"

    def read_register(self, thread: int, register: int) -> bytes:
        return bytes(self.registers[register])

    def write_register(self, thread: int, register: int, value: bytes) -> None:
        self.registers[register][:] = value

    def read_memory(self, thread: int, address: int, size: int) -> bytes:
        if not 0x1000 <= address < 0x11000:
            raise TargetError("not mapped")
        return bytes(self.memory[address - 0x1000 :][:size])

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        if not 0x1000 <= address <= 0x11000 - len(data):
            raise TargetError("not mapped")
        self.memory[address - 0x1000 : address - 0x1000 + len(data)] = data

    def insert(self, kind: Breakpoint, address: int, size: int) -> None:
        self.points.add((kind, address, size))

    def remove(self, kind: Breakpoint, address: int, size: int) -> None:
        self.points.discard((kind, address, size))


def session() -> tuple[Few, Session]:
    few = Few()
    return few, Session(few, lambda words: f"you said {words}")


def test_registers_and_memory() -> None:
    few, one = session()
    rip = BY_NAME["rip"]
    assert one.answer(b"P%x=0011223344556677" % rip) == b"OK"
    assert few.registers[rip] == bytes.fromhex("0011223344556677")
    assert one.answer(b"p%x" % rip) == b"0011223344556677"
    whole = one.answer(b"g")
    assert isinstance(whole, bytes)
    assert len(whole) == 2 * sum(register.size for register in REGISTERS[:GENERAL])
    assert one.answer(b"G" + whole) == b"OK"
    assert one.answer(b"M1000,3:616263") == b"OK"
    assert one.answer(b"X1003,2:}\x03") == b"OK"
    assert one.answer(b"m1000,5") == b"abc}\x03".hex().encode()
    assert one.answer(b"m0,5") == b"E01"
    assert one.answer(b"p9999") == b"E01"
    assert one.answer(b"P%x=00" % rip) == b"E01"


def test_stops_threads_and_going_on() -> None:
    few, one = session()
    assert one.stopped(Stop(5, 2, "watch:1234")) == b"T05thread:2;watch:1234;"
    assert one.answer(b"?") == b"T05thread:2;watch:1234;"
    assert one.answer(b"qC") == b"QC2"
    assert (one.answer(b"qfThreadInfo"), one.answer(b"qsThreadInfo")) == (b"m1,2", b"l")
    assert (one.answer(b"T2"), one.answer(b"T3")) == (b"OK", b"E01")
    assert one.answer(b"Hg1") == b"OK"
    assert one.answer(b"Hg7") == b"E01"
    assert one.answer(b"vCont;s:2;c") == Action(Resume.STEP, 2)
    assert one.answer(b"vCont;c") == Action(Resume.CONTINUE)
    assert one.answer(b"Z1,ffffffff81000000,1") == b"OK"
    assert few.points == {(Breakpoint.HARDWARE, 0xFFFFFFFF81000000, 1)}
    assert one.answer(b"z1,ffffffff81000000,1") == b"OK"
    assert few.points == set()
    assert one.answer(b"Z9,0,1") == b""
    assert one.answer(b"qRcmd," + b"exits".hex().encode()) == b"you said exits".hex().encode()
    assert one.answer(b"nonsense") == b""


@settings(max_examples=400)
@given(
    st.sampled_from([*b"?gGpPmMXZzHTcsDkqQv", 0x7F]),
    st.one_of(
        st.binary(max_size=40),
        st.text("0123456789abcdef,;:=-", max_size=40).map(str.encode),
        st.sampled_from([b"Xfer:features:read:target.xml:", b"Rcmd,", b"Cont;", b"ThreadExtraInfo,"]),
    ),
    st.text("0123456789abcdef,;:-", max_size=12).map(str.encode),
)
def test_any_packet_gets_an_answer(letter: int, head: bytes, tail: bytes) -> None:
    _, one = session()
    assert isinstance(one.answer(bytes((letter,)) + head + tail), bytes | Action)


def test_the_description_is_what_gdb_reads_in_pieces() -> None:
    _, one = session()
    got = b""
    while True:
        part = one.answer(b"qXfer:features:read:target.xml:%x,200" % len(got))
        assert isinstance(part, bytes)
        got += part[1:]
        if part[:1] == b"l":
            break
    assert got == target_xml()
    tree = ElementTree.fromstring(got)
    found = [(reg.get("name"), int(reg.get("bitsize") or 0)) for reg in tree.iter("reg")]
    assert found == [(register.name, register.bits) for register in REGISTERS]


@pytest.mark.parametrize("name", ["rip", "xmm15", "cr3", "gs_base"])
def test_every_register_has_a_place(name: str) -> None:
    register = REGISTERS[BY_NAME[name]]
    assert bool(register.field) != (register.xsave is not None)
