"""One debugger's packets, answered about a target that stands still.

Source: GDB's manual, appendix E (packets, stop replies, general query packets).  What is not known is
answered by an empty packet, as the protocol wants it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from swtdx.gdb.packets import LARGEST, number
from swtdx.gdb.registers import GENERAL, REGISTERS, target_xml

_ERROR: Final = b"E01"
SIGINT: Final = 2
SIGTRAP: Final = 5


class TargetError(Exception):
    """What was asked for cannot be had: memory that is not mapped, a register that cannot be written."""


class Breakpoint(enum.IntEnum):
    """The kinds of ``Z`` packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


class Target(Protocol):
    """A machine that stands still.  Threads are numbered from 1.

    Every method but ``threads`` raises TargetError where it cannot do what it is asked to.
    """

    def threads(self) -> list[int]:
        """All of them."""

    def describe(self, thread: int) -> str:
        """What a thread is, and does."""

    def read_register(self, thread: int, register: int) -> bytes:
        """A register by its number in :data:`~swtdx.gdb.registers.REGISTERS`, little-endian."""

    def write_register(self, thread: int, register: int, value: bytes) -> None:
        """Store a register."""

    def read_memory(self, thread: int, address: int, size: int) -> bytes:
        """Memory by linear address; fewer bytes where it ends."""

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        """Store memory."""

    def insert(self, kind: Breakpoint, address: int, size: int) -> None:
        """Set a breakpoint."""

    def remove(self, kind: Breakpoint, address: int, size: int) -> None:
        """Take a breakpoint away."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the target stands still: a signal, the thread, and for GDB what else it was (``watch:addr``)."""

    signal: int
    thread: int
    more: str = ""


class Resume(enum.Enum):
    """What becomes of the target now."""

    CONTINUE = "continue"
    STEP = "step"
    DETACH = "detach"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Action:
    """What to do, and for a step with which thread."""

    resume: Resume
    thread: int = 0


class Session:
    """Answers packets.

    Args:
        monitor: carries out a ``monitor`` command; what it has to say.
    """

    def __init__(self, target: Target, monitor: Callable[[str], str]) -> None:
        self._target = target
        self._monitor = monitor
        self.stop = Stop(SIGTRAP, 1)
        self._thread = 1
        self.acknowledges = True

    def stopped(self, stop: Stop) -> bytes:
        """The target stands still; the stop reply."""
        self.stop = stop
        self._thread = stop.thread
        return self._stop_reply()

    def _stop_reply(self) -> bytes:
        more = f"{self.stop.more};" if self.stop.more else ""
        return f"T{self.stop.signal:02x}thread:{self.stop.thread:x};{more}".encode()

    def answer(self, payload: bytes) -> bytes | Action:
        """What to send back; or what to do with the target, which is answered when it stands still again."""
        try:
            return self._answer(payload)
        except (TargetError, ValueError, IndexError):
            return _ERROR

    def _answer(self, payload: bytes) -> bytes | Action:
        letter, rest = payload[:1], payload[1:]
        match letter:
            case b"?":
                return self._stop_reply()
            case b"g":
                parts = (self._register(each) for each in range(GENERAL))
                return b"".join(part.hex().encode() for part in parts)
            case b"G":
                return self._write_all(bytes.fromhex(rest.decode("ascii")))
            case b"p":
                return self._register(number(rest)).hex().encode()
            case b"P":
                which, _, value = rest.partition(b"=")
                self._write_register(number(which), bytes.fromhex(value.decode("ascii")))
                return b"OK"
            case b"m":
                address, size = (number(part) for part in rest.split(b","))
                data = self._target.read_memory(self._thread, address, min(size, LARGEST // 2))
                return data.hex().encode()
            case b"M" | b"X":
                return self._write_memory(letter, rest)
            case b"Z" | b"z":
                return self._breakpoint(letter, rest)
            case b"H":
                return self._choose(rest)
            case b"T":
                return b"OK" if number(rest) in self._target.threads() else _ERROR
            case b"c":
                return Action(Resume.CONTINUE)
            case b"s":
                return Action(Resume.STEP, self._thread)
            case b"D":
                return Action(Resume.DETACH)
            case b"k":
                return Action(Resume.KILL)
            case b"q" | b"Q" | b"v":
                return self._query(payload)
        return b""

    # ------------------------------------------------------------------ registers and memory
    def _register(self, which: int) -> bytes:
        if not 0 <= which < len(REGISTERS):
            raise TargetError(f"there is no register {which}")
        return self._target.read_register(self._thread, which)

    def _write_register(self, which: int, value: bytes) -> None:
        if not 0 <= which < len(REGISTERS) or len(value) != REGISTERS[which].size:
            raise TargetError(f"register {which} is not of {len(value)} bytes")
        self._target.write_register(self._thread, which, value)

    def _write_all(self, data: bytes) -> bytes:
        at = 0
        for which in range(GENERAL):
            size = REGISTERS[which].size
            if at + size > len(data):
                break
            value = data[at : at + size]
            if value != self._register(which):
                self._write_register(which, value)
            at += size
        return b"OK"

    def _write_memory(self, letter: bytes, rest: bytes) -> bytes:
        head, colon, data = rest.partition(b":")
        if not colon:
            return _ERROR
        address, size = (number(part) for part in head.split(b","))
        if letter == b"M":
            data = bytes.fromhex(data.decode("ascii"))
        if len(data) != size:
            return _ERROR
        if data:
            self._target.write_memory(self._thread, address, data)
        return b"OK"

    def _breakpoint(self, letter: bytes, rest: bytes) -> bytes:
        kind, address, size = rest.split(b";")[0].split(b",")
        if number(kind) > max(Breakpoint):
            return b""
        change = self._target.insert if letter == b"Z" else self._target.remove
        change(Breakpoint(number(kind)), number(address), number(size))
        return b"OK"

    # ------------------------------------------------------------------ threads and queries
    def _choose(self, rest: bytes) -> bytes:
        if rest[:1] in (b"g", b"c") and rest[1:] not in (b"0", b"-1"):
            thread = number(rest[1:])
            if thread not in self._target.threads():
                return _ERROR
            if rest[:1] == b"g":
                self._thread = thread
        return b"OK"

    def _query(self, payload: bytes) -> bytes | Action:
        name = payload.partition(b":")[0]
        if name == b"qSupported":
            return (
                f"PacketSize={LARGEST:x};qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+"
            ).encode()
        if name == b"QStartNoAckMode":
            self.acknowledges = False
            return b"OK"
        if payload.startswith(b"qXfer:features:read:target.xml:"):
            offset, size = (number(part) for part in payload.rpartition(b":")[2].split(b","))
            whole = target_xml()
            part = whole[offset : offset + min(size, LARGEST // 2)]
            return (b"m" if offset + len(part) < len(whole) else b"l") + part
        if payload == b"qfThreadInfo":
            return b"m" + b",".join(b"%x" % thread for thread in self._target.threads())
        if payload == b"qsThreadInfo":
            return b"l"
        if payload == b"qC":
            return b"QC%x" % self._thread
        if payload == b"qAttached":
            return b"1"
        if payload.startswith(b"qThreadExtraInfo,"):
            return self._target.describe(number(payload.partition(b",")[2])).encode().hex().encode()
        if payload.startswith(b"qRcmd,"):
            words = bytes.fromhex(payload[6:].decode("ascii")).decode("utf-8", "replace")
            return self._monitor(words).encode().hex().encode() or b"OK"
        if payload == b"vCont?":
            return b"vCont;c;C;s;S"
        if payload.startswith(b"vCont;"):
            return self._continue(payload[6:])
        if payload.startswith(b"vKill"):
            return Action(Resume.KILL)
        return b""

    def _continue(self, rest: bytes) -> bytes | Action:
        """``vCont``: one thread may step, while the others run."""
        for word in rest.split(b";"):
            what, _, thread = word.partition(b":")
            if what[:1] in (b"s", b"S"):
                return Action(Resume.STEP, self._thread if thread in (b"", b"-1") else number(thread))
        if not rest or rest[:1] not in (b"c", b"C"):
            return _ERROR
        return Action(Resume.CONTINUE)
